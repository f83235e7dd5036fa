// The custom calls that XLA compiles into functions with jit_compile=True. They work on shapes that XLA knows.
//
// XLA passes a line of words: the types of x, of scale and of offset (ANYNORM_*, - for what is not given), TensorFlow's
// configured number of threads, and the plan as in tensorflow_problem.h. Inputs and outputs are those of the op of that
// name, but that the gradient takes no offset.
#include <dlfcn.h>

#include <optional>
#include <string>

#include "../anynorm.h"
#include "tensorflow_problem.h"

namespace anynorm {
namespace {

struct Request {
  anynorm_problem problem{};
  bool has_scale = false;
  bool has_offset = false;

  bool read(const char* text, size_t length) {
    std::string_view line(text, length);
    int64_t dtype, scale_dtype = 0, offset_dtype = 0, threads;
    const std::string_view x = next_word(&line), scale = next_word(&line), offset = next_word(&line);
    has_scale = scale != "-";
    has_offset = offset != "-";
    if (!read_int(x, &dtype) || (has_scale && !read_int(scale, &scale_dtype)) ||
        (has_offset && !read_int(offset, &offset_dtype)) || !read_int(next_word(&line), &threads)) {
      return false;
    }
    Told told;
    if (!told.read(line)) return false;
    problem = told.problem;
    for (size_t i = 0; i < told.runs.size(); ++i) {
      if (!told.runs[i].dimensions.empty()) return false;
      problem.extents[i] = told.runs[i].known;
    }
    problem.dtype = static_cast<int32_t>(dtype);
    problem.scale_dtype = static_cast<int32_t>(scale_dtype);
    problem.offset_dtype = static_cast<int32_t>(offset_dtype);
    problem.threads = threads_from(static_cast<int>(threads));
    return true;
  }
};

// XlaCustomCallStatus_ of xla/service/custom_call_status_internal.h: TensorFlow does not export the function to set it.
void fail(void* status, const char* what) {
  *static_cast<std::optional<std::string>*>(status) = std::string("anynorm: ") + what;
}

using Inputs = const void* const*;
using Run = int (*)(const Request&, void* out, Inputs in);

template <Run run>
void custom_call(void* out, const void** in, const char* opaque, size_t length, void* status) {
  Request request;
  if (!request.read(opaque, length)) return fail(status, "a custom call of another version");
  const int code = run(request, out, in);
  if (code != ANYNORM_OK) fail(status, explain(code));
}

int forward(const Request& request, void* out, Inputs in) {
  void* const* const outputs = static_cast<void**>(out);
  const void* const x = *in++;
  const void* const scale = request.has_scale ? *in++ : nullptr;
  const void* const offset = request.has_offset ? *in++ : nullptr;
  return anynorm_forward(&request.problem, x, scale, offset, outputs[0], outputs[1], outputs[2],
                         static_cast<double*>(outputs[3]));
}

int backward(const Request& request, void* out, Inputs in) {
  const void* const scale = request.has_scale ? in[3] : nullptr;
  // XLA passes several outputs as an array of pointers, and a single one as its pointer.
  void* const* outputs = request.has_scale || request.has_offset ? static_cast<void**>(out) : &out;
  void* const dx = *outputs++;
  void* const dscale = request.has_scale ? *outputs++ : nullptr;
  void* const doffset = request.has_offset ? *outputs++ : nullptr;
  return anynorm_backward(&request.problem, in[0], in[1], scale, static_cast<const double*>(in[2]), dx, dscale,
                          doffset);
}

int moments(const Request& request, void* out, Inputs in) {
  void* const* const outputs = static_cast<void**>(out);
  return anynorm_moments(&request.problem, in[0], outputs[0], outputs[1], nullptr);
}

}  // namespace

// Makes the custom calls known to XLA, which has no C function for it; false where this TensorFlow lacks the C++ ones.
static bool register_custom_calls() {
#if defined(__APPLE__)
  const char* const names[] = {"libtensorflow_cc.2.dylib", "libtensorflow_framework.2.dylib"};
#else
  const char* const names[] = {"libtensorflow_cc.so.2", "libtensorflow_framework.so.2"};
#endif
  using Registry = void* (*)();
  using Register = void (*)(void* registry, const std::string& target, void* function, const std::string& platform);
  for (const char* name : names) {
    void* const library = dlopen(name, RTLD_NOLOAD | RTLD_NOW);
    if (!library) continue;
    // xla::CustomCallTargetRegistry::Global() and ::Register(name, function, platform)
    const auto registry = reinterpret_cast<Registry>(dlsym(library, "_ZN3xla24CustomCallTargetRegistry6GlobalEv"));
    const auto add = reinterpret_cast<Register>(
        dlsym(library,
              "_ZN3xla24CustomCallTargetRegistry8RegisterERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEPvS8_"));
    if (!registry || !add) continue;
    add(registry(), "anynorm_forward", reinterpret_cast<void*>(custom_call<forward>), "Host");
    add(registry(), "anynorm_backward", reinterpret_cast<void*>(custom_call<backward>), "Host");
    add(registry(), "anynorm_moments", reinterpret_cast<void*>(custom_call<moments>), "Host");
    return true;
  }
  return false;
}

static const bool has_custom_calls = register_custom_calls();

}  // namespace anynorm

// Whether functions with jit_compile=True can use the kernels.
extern "C" ANYNORM_API int anynorm_tensorflow_has_xla(void) { return anynorm::has_custom_calls; }
