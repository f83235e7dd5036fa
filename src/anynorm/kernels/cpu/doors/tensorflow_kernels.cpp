// What TensorFlow runs for each op.
#include <memory>
#include <string>

#include "tensorflow_call.h"

namespace anynorm {

// intra_op_parallelism_threads of a serialized ConfigProto: its field 2, a varint. 0 where it is not set.
static int threads_of_config(const TF_Buffer& config) {
  const auto* at = static_cast<const uint8_t*>(config.data);
  const uint8_t* const end = at + config.length;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; at < end && shift < 64; shift += 7) {
      value |= static_cast<uint64_t>(*at & 127) << shift;
      if (*at++ < 128) break;
    }
    return value;
  };
  while (at < end) {
    const uint64_t tag = varint(), kind = tag & 7;
    const uint64_t value = kind == 0 || kind == 2 ? varint() : 0;
    if (tag == (2 << 3)) return static_cast<int>(value);
    const uint64_t skip = kind == 1 ? 8 : kind == 2 ? value : kind == 5 ? 4 : 0;
    if (skip > static_cast<uint64_t>(end - at)) break;
    at += skip;
  }
  return 0;
}

// Asked when the op runs, since a graph may have been saved elsewhere.
int threads_of(TF_OpKernelContext* context) {
  TF_Status* const status = tf.TF_NewStatus();
  TF_Buffer* const config = tf.TF_NewBuffer();
  tf.TF_GetSerializedConfigProto(context, config, status);
  const int threads = tf.TF_GetCode(status) == TF_OK ? threads_of_config(*config) : 0;
  tf.TF_DeleteBuffer(config);
  tf.TF_DeleteStatus(status);
  return threads_from(threads);
}

namespace {

void forward(void* kernel, TF_OpKernelContext* context) {
  Call call(kernel, context);
  void* const y = call.output_in_place_of(0);
  const void* const x = call.x();
  const void* const scale = call.scale(1);
  const void* const offset = call.offset(1);
  void* const mean = call.output(1, call.kept_shape());
  void* const variance = call.output(2, call.kept_shape());
  void* const saved = call.output(3, {kept_count(call.problem), 2});
  if (!call.ok()) return;
  call.finish(anynorm_forward(&call.problem, x, scale, offset, y, mean, variance, static_cast<double*>(saved)));
}

void backward(void* kernel, TF_OpKernelContext* context) {
  Call call(kernel, context);
  void* const dx = call.output_in_place_of(1);
  const void* const x = call.x();
  const void* const dy = call.x_like(1);
  const void* const saved = call.input(2, 2 * kept_count(call.problem));
  const void* const scale = call.scale(3);
  call.offset(3);
  void* const dscale = call.dscale(3);
  void* const doffset = call.doffset(3);
  if (!call.ok()) return;
  call.finish(anynorm_backward(&call.problem, x, dy, scale, static_cast<const double*>(saved), dx, dscale, doffset));
}

void moments(void* kernel, TF_OpKernelContext* context) {
  Call call(kernel, context);
  const void* const x = call.x();
  void* const mean = call.output(0, call.kept_shape());
  void* const variance = call.output(1, call.kept_shape());
  if (!call.ok()) return;
  call.finish(anynorm_moments(&call.problem, x, mean, variance, nullptr));
}

void apply(void* kernel, TF_OpKernelContext* context) {
  Call call(kernel, context);
  void* const y = call.output_in_place_of(0);
  const void* const x = call.x();
  const void* const mean = call.input(1, kept_count(call.problem));
  const void* const variance = call.input(2, kept_count(call.problem));
  const void* const scale = call.scale(3);
  const void* const offset = call.offset(3);
  if (!call.ok()) return;
  call.finish(anynorm_apply(&call.problem, x, mean, variance, scale, offset, y, nullptr));
}

void* create(TF_OpKernelConstruction* construction) {
  auto kernel = std::make_unique<Kernel>();
  TF_Status* const status = tf.TF_NewStatus();
  int32_t list_size = 0, size = 0;
  tf.TF_OpKernelConstruction_GetAttrSize(construction, "plan", &list_size, &size, status);
  std::string plan(static_cast<size_t>(size), ' ');
  if (tf.TF_GetCode(status) == TF_OK) {
    tf.TF_OpKernelConstruction_GetAttrString(construction, "plan", plan.data(), plan.size(), status);
  }
  for (const auto& [name, number] : {std::pair{"scales", &kernel->scales}, {"offsets", &kernel->offsets}}) {
    if (tf.TF_GetCode(status) == TF_OK && tf.TF_OpKernelConstruction_HasAttr(construction, name, status)) {
      tf.TF_OpKernelConstruction_GetAttrInt32(construction, name, number, status);
    }
  }
  if (tf.TF_GetCode(status) == TF_OK && !kernel->told.read(plan)) {
    const std::string message = "anynorm: \"" + plan + "\" is no plan of this version";
    tf.TF_SetStatus(status, TF_INVALID_ARGUMENT, message.c_str());
  }
  if (tf.TF_GetCode(status) != TF_OK) tf.TF_OpKernelConstruction_Failure(construction, status);
  tf.TF_DeleteStatus(status);
  return kernel.release();
}

void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

}  // namespace

void register_kernels(TF_Status* status) {
  const std::pair<const char*, ComputeFunction> kernels[] = {{"AnynormForward", forward},
                                                             {"AnynormBackward", backward},
                                                             {"AnynormMoments", moments},
                                                             {"AnynormApply", apply}};
  for (const auto& [name, compute] : kernels) {
    TF_KernelBuilder* const builder = tf.TF_NewKernelBuilder(name, "CPU", create, compute, destroy);
    tf.TF_RegisterKernelBuilder(name, builder, status);
    if (tf.TF_GetCode(status) != TF_OK) return;
  }
}

}  // namespace anynorm
