// TensorFlow's stable C API, declared here and found at run time, so that this library needs no header and no symbol
// of any one TensorFlow. Types and numbers as in tensorflow/c/{kernels,ops,tf_tensor,tf_status,tf_buffer}.h.
#ifndef ANYNORM_TENSORFLOW_API_H_
#define ANYNORM_TENSORFLOW_API_H_

#include <stddef.h>
#include <stdint.h>

struct TF_Buffer {
  const void* data;
  size_t length;
  void (*data_deallocator)(void* data, size_t length);
};
struct TF_DimensionHandle;
struct TF_KernelBuilder;
struct TF_OpDefinitionBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
struct TF_ShapeHandle;
struct TF_ShapeInferenceContext;
struct TF_Status;
struct TF_Tensor;

enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8, TF_UNIMPLEMENTED = 12 };
enum { TF_FLOAT = 1, TF_DOUBLE = 2, TF_BFLOAT16 = 14, TF_HALF = 19 };

using ShapeFunction = void (*)(TF_ShapeInferenceContext*, TF_Status*);
using CreateFunction = void* (*)(TF_OpKernelConstruction*);
using ComputeFunction = void (*)(void*, TF_OpKernelContext*);
using DeleteFunction = void (*)(void*);

// F(result, name, parameters)
#define ANYNORM_TENSORFLOW_FUNCTIONS(F)                                                                              \
  F(TF_Status*, TF_NewStatus, (void))                                                                                \
  F(void, TF_DeleteStatus, (TF_Status*))                                                                             \
  F(void, TF_SetStatus, (TF_Status*, int code, const char* message))                                                 \
  F(int, TF_GetCode, (const TF_Status*))                                                                             \
  F(const char*, TF_Message, (const TF_Status*))                                                                     \
  F(TF_Buffer*, TF_NewBuffer, (void))                                                                                \
  F(void, TF_DeleteBuffer, (TF_Buffer*))                                                                             \
  F(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char* name))                                          \
  F(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char* spec))                                \
  F(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char* spec))                               \
  F(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char* spec))                              \
  F(void, TF_OpDefinitionBuilderSetShapeInferenceFunction, (TF_OpDefinitionBuilder*, ShapeFunction))                 \
  F(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                            \
  F(TF_ShapeHandle*, TF_NewShapeHandle, (void))                                                                      \
  F(void, TF_DeleteShapeHandle, (TF_ShapeHandle*))                                                                   \
  F(int64_t, TF_ShapeInferenceContextNumInputs, (TF_ShapeInferenceContext*))                                         \
  F(void, TF_ShapeInferenceContextGetInput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))           \
  F(void, TF_ShapeInferenceContextSetOutput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))          \
  F(void, TF_ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*))                          \
  F(TF_KernelBuilder*, TF_NewKernelBuilder,                                                                          \
    (const char* op, const char* device, CreateFunction, ComputeFunction, DeleteFunction))                           \
  F(void, TF_RegisterKernelBuilder, (const char* name, TF_KernelBuilder*, TF_Status*))                               \
  F(void, TF_OpKernelConstruction_GetAttrSize,                                                                       \
    (TF_OpKernelConstruction*, const char* name, int32_t* list_size, int32_t* total_size, TF_Status*))               \
  F(void, TF_OpKernelConstruction_GetAttrString,                                                                     \
    (TF_OpKernelConstruction*, const char* name, char* value, size_t max_length, TF_Status*))                        \
  F(void, TF_OpKernelConstruction_GetAttrInt32, (TF_OpKernelConstruction*, const char* name, int32_t*, TF_Status*))  \
  F(bool, TF_OpKernelConstruction_HasAttr, (TF_OpKernelConstruction*, const char* name, TF_Status*))                 \
  F(void, TF_OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))                                   \
  F(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                                             \
  F(void, TF_GetSerializedConfigProto, (TF_OpKernelContext*, TF_Buffer*, TF_Status*))                                \
  F(int, TF_ExpectedOutputDataType, (TF_OpKernelContext*, int))                                                      \
  F(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                                          \
  F(TF_Tensor*, TF_AllocateOutput,                                                                                   \
    (TF_OpKernelContext*, int index, int dtype, const int64_t* dims, int rank, size_t bytes, TF_Status*))            \
  F(TF_Tensor*, TF_ForwardInputOrAllocateOutput,                                                                     \
    (TF_OpKernelContext*, const int* inputs, int count, int output, const int64_t* dims, int rank, int* forwarded,   \
     TF_Status*))                                                                                                    \
  F(int, TF_NumDims, (const TF_Tensor*))                                                                             \
  F(int64_t, TF_Dim, (const TF_Tensor*, int))                                                                        \
  F(int, TF_TensorType, (const TF_Tensor*))                                                                          \
  F(int64_t, TF_TensorElementCount, (const TF_Tensor*))                                                              \
  F(void*, TF_TensorData, (const TF_Tensor*))                                                                        \
  F(void, TF_DeleteTensor, (TF_Tensor*))

namespace anynorm {

struct TensorFlowApi {
#define ANYNORM_MEMBER(result, name, parameters) result(*name) parameters;
  ANYNORM_TENSORFLOW_FUNCTIONS(ANYNORM_MEMBER)
#undef ANYNORM_MEMBER
};

extern TensorFlowApi tf;

// Fills `tf` from the TensorFlow that is loaded; otherwise says why not. nullptr: all is there.
const char* find_tensorflow();

void register_ops(TF_Status* status);
void register_kernels(TF_Status* status);

}  // namespace anynorm

#endif
