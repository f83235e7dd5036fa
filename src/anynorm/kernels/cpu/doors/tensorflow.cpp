// The TensorFlow door: ops for eager mode and graphs, registered when `tf.load_op_library` loads this library.
#include <dlfcn.h>

#include <string>

#include "../anynorm.h"
#include "tensorflow_api.h"

namespace anynorm {

// The version of anynorm.h that this was written for.
enum { kAbi = 2 };

TensorFlowApi tf;

const char* find_tensorflow() {
#if defined(__APPLE__)
  const char* const name = "libtensorflow_framework.2.dylib";
#else
  const char* const name = "libtensorflow_framework.so.2";
#endif
  // Only the copy that this process has already: another one would have registries of its own.
  void* const library = dlopen(name, RTLD_NOLOAD | RTLD_NOW);
  if (!library) return "TensorFlow is not loaded in this process";
#define ANYNORM_FIND(result, function, parameters)                                  \
  tf.function = reinterpret_cast<result(*) parameters>(dlsym(library, #function));  \
  if (!tf.function) return "this TensorFlow's C API has no " #function;
  ANYNORM_TENSORFLOW_FUNCTIONS(ANYNORM_FIND)
#undef ANYNORM_FIND
  return nullptr;
}

static void shapes_unknown(TF_ShapeInferenceContext* context, TF_Status* status) {
  tf.TF_ShapeInferenceContextSetUnknownShape(context, status);
}

static void shape_of_input(TF_ShapeInferenceContext* context, int output, int input, TF_Status* status) {
  TF_ShapeHandle* const shape = tf.TF_NewShapeHandle();
  tf.TF_ShapeInferenceContextGetInput(context, input, shape, status);
  if (tf.TF_GetCode(status) == TF_OK) tf.TF_ShapeInferenceContextSetOutput(context, output, shape, status);
  tf.TF_DeleteShapeHandle(shape);
}

// y has the shape of x. Those of mean and variance stand in an attribute, which the C API does not show here.
static void shape_of_x(TF_ShapeInferenceContext* context, TF_Status* status) {
  shapes_unknown(context, status);
  if (tf.TF_GetCode(status) == TF_OK) shape_of_input(context, 0, 0, status);
}

// dx as x; dscale and doffset as scale and offset, which are the inputs behind x, dy and saved.
static void shapes_of_gradient(TF_ShapeInferenceContext* context, TF_Status* status) {
  shape_of_x(context, status);
  const int inputs = static_cast<int>(tf.TF_ShapeInferenceContextNumInputs(context));
  for (int i = 3; i < inputs && tf.TF_GetCode(status) == TF_OK; ++i) shape_of_input(context, i - 2, i, status);
}

struct Op {
  const char* name;
  const char* inputs[5];
  const char* outputs[4];
  ShapeFunction shapes;
};

// saved: mean and rstd of each statistic, for the gradient.
static const Op kOps[] = {
    {"AnynormForward",
     {"x: T", "scale: scales * S", "offset: offsets * O"},
     {"y: T", "mean: M", "variance: M", "saved: double"},
     shape_of_x},
    {"AnynormBackward",
     {"x: T", "dy: T", "saved: double", "scale: scales * S", "offset: offsets * O"},
     {"dx: T", "dscale: scales * S", "doffset: offsets * O"},
     shapes_of_gradient},
    {"AnynormMoments", {"x: T"}, {"mean: M", "variance: M"}, shapes_unknown},
    {"AnynormApply",
     {"x: T", "mean: M", "variance: M", "scale: scales * S", "offset: offsets * O"},
     {"y: T"},
     shape_of_x},
};

void register_ops(TF_Status* status) {
  for (const Op& op : kOps) {
    TF_OpDefinitionBuilder* const builder = tf.TF_NewOpDefinitionBuilder(op.name);
    bool has_parameters = false;
    for (const char* input : op.inputs) {
      if (!input) break;
      tf.TF_OpDefinitionBuilderAddInput(builder, input);
      has_parameters |= std::string(input).find("scales") != std::string::npos;
    }
    for (const char* output : op.outputs) {
      if (output) tf.TF_OpDefinitionBuilderAddOutput(builder, output);
    }
    tf.TF_OpDefinitionBuilderAddAttr(builder, "plan: string");
    tf.TF_OpDefinitionBuilderAddAttr(builder, "T: {float, double, half, bfloat16}");
    // The statistics' type; they are float but for double arrays.
    tf.TF_OpDefinitionBuilderAddAttr(builder, "M: {float, double} = DT_FLOAT");
    if (has_parameters) {
      // None or one of each; with none there is nothing to take the type from.
      tf.TF_OpDefinitionBuilderAddAttr(builder, "scales: int >= 0");
      tf.TF_OpDefinitionBuilderAddAttr(builder, "offsets: int >= 0");
      tf.TF_OpDefinitionBuilderAddAttr(builder, "S: {float, double, half, bfloat16} = DT_FLOAT");
      tf.TF_OpDefinitionBuilderAddAttr(builder, "O: {float, double, half, bfloat16} = DT_FLOAT");
    }
    tf.TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, op.shapes);
    tf.TF_RegisterOpDefinition(builder, status);
    if (tf.TF_GetCode(status) != TF_OK) return;
  }
}

static std::string load() {
  if (anynorm_abi() != kAbi) return "the library of the kernels beside it is of another version";
  if (const char* missing = find_tensorflow()) return missing;
  TF_Status* const status = tf.TF_NewStatus();
  register_ops(status);
  if (tf.TF_GetCode(status) == TF_OK) register_kernels(status);
  const std::string problem = tf.TF_GetCode(status) == TF_OK ? "" : tf.TF_Message(status);
  tf.TF_DeleteStatus(status);
  return problem;
}

// At load, because tf.load_op_library makes Python functions of the ops that appear meanwhile.
static const std::string load_problem = load();

}  // namespace anynorm

// Why the ops could not be registered; empty where they are.
extern "C" ANYNORM_API const char* anynorm_tensorflow_problem(void) { return anynorm::load_problem.c_str(); }
