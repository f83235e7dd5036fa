// The JAX door: the kernels as handlers of XLA's typed foreign function interface, whose headers need no library.
//
// Extents and labels of the runs come as attributes, types with the buffers. `given` and `wanted` have a bit for each
// optional argument and result, in the order in which the handlers take them. `saved` travels as opaque bytes, since
// JAX has float64 only where a user has switched it on.
#include <cstdint>
#include <string>

#include "../anynorm.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

enum { kUnknown = -1 };

int32_t dtype_of(const Buffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::F32: return ANYNORM_FLOAT32;
    case ffi::F64: return ANYNORM_FLOAT64;
    case ffi::F16: return ANYNORM_FLOAT16;
    case ffi::BF16: return ANYNORM_BFLOAT16;
    default: return kUnknown;
  }
}

// An argument or a result that may be absent.
struct Array {
  void* data = nullptr;
  int32_t dtype = ANYNORM_FLOAT32;

  Array() = default;
  Array(const Buffer& buffer) : data(buffer.untyped_data()), dtype(dtype_of(buffer)) {}
  Array(Result& result) : Array(*result) {}
};

// The optional ones, one after the other: `present` has a bit for each, the lowest for the first.
template <typename Item, typename Rest>
class Optional {
 public:
  Optional(const Rest& rest, int64_t present) : rest_(rest), present_(present) {}

  Array next() {
    const bool there = present_ & 1;
    present_ >>= 1;
    if (!there) return Array();
    auto item = rest_.template get<Item>(taken_++);
    if (item.has_value()) return Array(*item);
    complete_ = false;
    return Array();
  }

  bool complete() const { return complete_ && present_ == 0 && taken_ == rest_.size(); }

 private:
  const Rest& rest_;
  int64_t present_;
  size_t taken_ = 0;
  bool complete_ = true;
};

using Arguments = Optional<Buffer, ffi::RemainingArgs>;
using Results = Optional<Buffer, ffi::RemainingRets>;

// What every handler is told of the array, as attributes.
struct Words {
  ffi::Span<const int64_t> extents;
  int64_t reduced, affine, removes;
  int64_t threads;  // at most so many; 0: as many as XLA has
  double eps;
  int64_t given, wanted;
};

ffi::Error wrong(const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "anynorm: " + what);
}

void schedule(void* self, void (*task)(void*), void* argument) {
  static_cast<ffi::ThreadPool*>(self)->Schedule([task, argument] { task(argument); });
}

// One call of a kernel. XLA's own threads help: others beside them would stand in each other's way.
class Call {
 public:
  Call(ffi::ThreadPool& pool, const Buffer& x, const Words& words) : executor_{schedule, &pool} {
    rank_ = words.extents.size();
    for (size_t i = 0; i < rank_ && i < ANYNORM_MAX_RUNS; ++i) {
      problem.extents[i] = words.extents.begin()[i];
      size_ *= problem.extents[i];
    }
    elements_ = int64_t(x.element_count());
    problem.rank = int32_t(rank_);
    problem.reduced = uint32_t(words.reduced);
    problem.affine = uint32_t(words.affine);
    problem.removes = uint32_t(words.removes);
    problem.eps = words.eps;
    problem.dtype = dtype_of(x);
    // The caller may be none of the pool's threads, yet it counts as one: XLA's loops use as many in all.
    const int64_t threads = words.threads ? words.threads : pool.num_threads();
    problem.threads = threads > 1 ? int32_t(threads) : 1;
    problem.executor = &executor_;
  }

  template <typename Kernel>
  ffi::Error run(bool complete, const Array& scale, const Array& offset, Kernel kernel) {
    if (!complete) return wrong("the optional arguments or results are not those that the attributes announce");
    if (rank_ > ANYNORM_MAX_RUNS || size_ != elements_) return wrong("the runs do not make up the array");
    problem.scale_dtype = scale.dtype;
    problem.offset_dtype = offset.dtype;
    if (problem.dtype == kUnknown || scale.dtype == kUnknown || offset.dtype == kUnknown)
      return wrong("arrays must be of float16, bfloat16, float32 or float64");
    switch (kernel(&problem)) {
      case ANYNORM_OK: return ffi::Error::Success();
      case ANYNORM_NO_MEMORY: return ffi::Error(ffi::ErrorCode::kResourceExhausted, "anynorm: out of memory");
      default: return wrong("there are no loops for runs of this order");
    }
  }

 private:
  anynorm_problem problem = {};
  anynorm_executor executor_;
  size_t rank_;
  int64_t size_ = 1, elements_;
};

ffi::Error forward(ffi::ThreadPool pool, Buffer x, ffi::RemainingArgs rest, Result y, ffi::RemainingRets more,
                   Words words) {
  Arguments arguments(rest, words.given);
  const Array scale = arguments.next(), offset = arguments.next();
  Results results(more, words.wanted);
  const Array mean = results.next(), variance = results.next(), saved = results.next();
  return Call(pool, x, words)
      .run(arguments.complete() && results.complete(), scale, offset, [&](const anynorm_problem* problem) {
        return anynorm_forward(problem, x.untyped_data(), scale.data, offset.data, y->untyped_data(), mean.data,
                               variance.data, static_cast<double*>(saved.data));
      });
}

ffi::Error backward(ffi::ThreadPool pool, Buffer x, Buffer dy, Buffer saved, ffi::RemainingArgs rest, Result dx,
                    ffi::RemainingRets more, Words words) {
  Arguments arguments(rest, words.given);
  const Array scale = arguments.next();
  Results results(more, words.wanted);
  const Array dscale = results.next(), doffset = results.next();
  return Call(pool, x, words)
      .run(arguments.complete() && results.complete(), scale.data ? scale : dscale, doffset,
           [&](const anynorm_problem* problem) {
             return anynorm_backward(problem, x.untyped_data(), dy.untyped_data(), scale.data,
                                     static_cast<const double*>(saved.untyped_data()), dx->untyped_data(),
                                     dscale.data, doffset.data);
           });
}

ffi::Error moments(ffi::ThreadPool pool, Buffer x, Result mean, Result variance, Words words) {
  return Call(pool, x, words).run(true, Array(), Array(), [&](const anynorm_problem* problem) {
    return anynorm_moments(problem, x.untyped_data(), mean->untyped_data(), variance->untyped_data(), nullptr);
  });
}

}  // namespace

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(Words, ffi::StructMember<ffi::Span<const int64_t>>("extents"),
                                      ffi::StructMember<int64_t>("reduced"), ffi::StructMember<int64_t>("affine"),
                                      ffi::StructMember<int64_t>("removes"), ffi::StructMember<int64_t>("threads"),
                                      ffi::StructMember<double>("eps"), ffi::StructMember<int64_t>("given"),
                                      ffi::StructMember<int64_t>("wanted"));

// Each handler by its name, for ctypes.
#define ANYNORM_HANDLER(name, function, binding)                              \
  extern "C" ANYNORM_API XLA_FFI_Error* name(XLA_FFI_CallFrame* call_frame); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function, binding)

static auto bound() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Buffer>(); }

ANYNORM_HANDLER(AnynormForward, forward, bound().RemainingArgs().Ret<Buffer>().RemainingRets().Attrs<Words>());
ANYNORM_HANDLER(
    AnynormBackward, backward,
    bound().Arg<Buffer>().Arg<Buffer>().RemainingArgs().Ret<Buffer>().RemainingRets().Attrs<Words>());
ANYNORM_HANDLER(AnynormMoments, moments, bound().Ret<Buffer>().Ret<Buffer>().Attrs<Words>());
