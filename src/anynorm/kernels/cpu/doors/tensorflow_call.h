// One execution of an op: its inputs and outputs, and the first thing that went wrong.
#ifndef ANYNORM_TENSORFLOW_CALL_H_
#define ANYNORM_TENSORFLOW_CALL_H_

#include <atomic>
#include <string>
#include <vector>

#include "../anynorm.h"
#include "tensorflow_api.h"
#include "tensorflow_problem.h"

namespace anynorm {

using Shape = std::vector<int64_t>;

// One node of a graph, or one kind of call in eager mode.
struct Kernel {
  Told told;
  int scales = 0;
  int offsets = 0;
  std::atomic<int> threads{-1};  // not asked for yet
};

// How many threads this TensorFlow's own operations use; 0: as many as there are processors.
int threads_of(TF_OpKernelContext* context);

class Call {
 public:
  Call(void* kernel, TF_OpKernelContext* context)
      : kernel_(*static_cast<Kernel*>(kernel)), context_(context), status_(tf.TF_NewStatus()) {
    const TF_Tensor* const x = take(0);
    if (!ok()) return;
    for (int i = 0; i < tf.TF_NumDims(x); ++i) shape_.push_back(tf.TF_Dim(x, i));
    if (!kernel_.told.fit(shape_, &problem)) {
      fail(TF_INVALID_ARGUMENT, "the array does not have the shape that its normalization was planned for");
      return;
    }
    if (kernel_.threads < 0) kernel_.threads = threads_of(context);
    problem.threads = kernel_.threads;
    problem.dtype = type_code(tf.TF_TensorType(x));
    // Held, its memory could not be given to an output.
    release();
  }

  ~Call() {
    if (!ok()) tf.TF_OpKernelContext_Failure(context_, status_);
    release();
    tf.TF_DeleteStatus(status_);
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool ok() const { return tf.TF_GetCode(status_) == TF_OK; }
  const Shape& x_shape() const { return shape_; }

  Shape kept_shape() const {
    Shape dims;
    if (!ok()) return dims;
    for (const Length& length : kernel_.told.kept) dims.push_back(length.of(shape_));
    return dims;
  }

  // Output 0, like x, in the memory of that input where nobody else needs it; to be called before any input is taken.
  void* output_in_place_of(int input) {
    if (!ok()) return nullptr;
    int forwarded = -1;
    return hold(tf.TF_ForwardInputOrAllocateOutput(context_, &input, 1, 0, shape_.data(),
                                                   static_cast<int>(shape_.size()), &forwarded, status_));
  }

  void* output(int index, const Shape& dims) {
    if (!ok()) return nullptr;
    const int dtype = tf.TF_ExpectedOutputDataType(context_, index);
    size_t size = dtype == TF_DOUBLE ? 8 : dtype == TF_FLOAT ? 4 : 2;
    for (int64_t n : dims) size *= static_cast<size_t>(n);
    return hold(tf.TF_AllocateOutput(context_, index, dtype, dims.data(), static_cast<int>(dims.size()), size, status_));
  }

  const void* x() { return x_like(0); }
  const void* x_like(int index) { return input(index, elements(shape_)); }

  // An input that must have `count` elements.
  const void* input(int index, int64_t count) {
    const TF_Tensor* const tensor = ok() ? take(index) : nullptr;
    if (!tensor) return nullptr;
    if (tf.TF_TensorElementCount(tensor) != count) {
      fail(TF_INVALID_ARGUMENT, "an input has another number of elements than its normalization was planned for");
    }
    return tf.TF_TensorData(tensor);
  }

  // Scale and offset are the inputs from `first` on; nullptr for what was not given.
  const void* scale(int first) { return kernel_.scales ? parameter(first, &problem.scale_dtype) : nullptr; }
  const void* offset(int first) {
    return kernel_.offsets ? parameter(first + kernel_.scales, &problem.offset_dtype) : nullptr;
  }

  // The gradients of scale and offset, which are the outputs behind dx and shaped as the inputs from `first` on.
  void* dscale(int first) { return kernel_.scales ? output(1, shape_of(first)) : nullptr; }
  void* doffset(int first) {
    return kernel_.offsets ? output(1 + kernel_.scales, shape_of(first + kernel_.scales)) : nullptr;
  }

  void finish(int code) {
    if (code != ANYNORM_OK) fail(code == ANYNORM_NO_MEMORY ? TF_RESOURCE_EXHAUSTED : TF_UNIMPLEMENTED, explain(code));
  }

  anynorm_problem problem{};

 private:
  static int type_code(int dtype) {
    return dtype == TF_DOUBLE     ? ANYNORM_FLOAT64
           : dtype == TF_HALF     ? ANYNORM_FLOAT16
           : dtype == TF_BFLOAT16 ? ANYNORM_BFLOAT16
                                  : ANYNORM_FLOAT32;
  }

  static int64_t elements(const Shape& dims) {
    int64_t product = 1;
    for (int64_t n : dims) product *= n;
    return product;
  }

  TF_Tensor* take(int index) {
    TF_Tensor* tensor = nullptr;
    tf.TF_GetInput(context_, index, &tensor, status_);
    if (tensor) held_.push_back(tensor);
    return tensor;
  }

  const void* parameter(int index, int32_t* dtype) {
    const void* const values = input(index, affine_count(problem));
    if (ok()) *dtype = type_code(tf.TF_TensorType(held_.back()));
    return values;
  }

  Shape shape_of(int index) {
    Shape dims;
    const TF_Tensor* const tensor = ok() ? take(index) : nullptr;
    for (int i = 0; tensor && i < tf.TF_NumDims(tensor); ++i) dims.push_back(tf.TF_Dim(tensor, i));
    return dims;
  }

  void* hold(TF_Tensor* tensor) {
    if (!tensor) return nullptr;
    held_.push_back(tensor);
    return tf.TF_TensorData(tensor);
  }

  void release() {
    for (TF_Tensor* tensor : held_) tf.TF_DeleteTensor(tensor);
    held_.clear();
  }

  void fail(int code, const char* what) {
    const std::string message = std::string("anynorm: ") + what;
    tf.TF_SetStatus(status_, code, message.c_str());
  }

  Kernel& kernel_;
  TF_OpKernelContext* const context_;
  TF_Status* const status_;
  Shape shape_;
  std::vector<TF_Tensor*> held_;
};

}  // namespace anynorm

#endif
