#include "array.h"

#include "dlpack.h"

// What array_prepare finds. A process has one torch and one interpreter that it works in, so these are the process's.
static PyObject *tensor_type, *parameter_type;
static PyObject *float32, *int64, *strided;  // torch's dtypes and layout
static int (*describe)(void*, DLTensor*);    // torch's part of the exchange API, or NULL
static PyObject *is_neg_name, *requires_grad_name, *is_cpu_name, *is_contiguous_name, *data_ptr_name;
static PyObject *dtype_name, *layout_name, *shape_name;

static const struct {
  DLDataType dlpack;
  const char* formats;  // of the buffer protocol, one of these letters
  size_t size;
} kElements[] = {
    [kFloat32] = {{kDLFloat, 32, 1}, "f", sizeof(float)},
    [kInt64] = {{kDLInt, 64, 1}, "ql", sizeof(int64_t)},
};

// Finds torch's table. Where there is none that is understood, tensors are read by their attributes.
static void find_exchange(void) {
  PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  DLPackExchangeAPIHeader* header = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
  PyErr_Clear();
  Py_XDECREF(capsule);  // the table itself lives as long as the process
  while (header && header->version.major > kDLPackMajor) header = header->prev_api;
  describe = NULL;
  if (header && header->version.major == kDLPackMajor) {
    describe = ((DLPackExchangeAPI*)header)->dltensor_from_py_object_no_sync;
  }
}

bool array_prepare(void) {
  if (tensor_type) return true;
  if (!INTERNED(is_neg_name, "is_neg") || !INTERNED(requires_grad_name, "requires_grad") ||
      !INTERNED(is_cpu_name, "is_cpu") || !INTERNED(is_contiguous_name, "is_contiguous") ||
      !INTERNED(data_ptr_name, "data_ptr") || !INTERNED(dtype_name, "dtype") || !INTERNED(layout_name, "layout") ||
      !INTERNED(shape_name, "shape")) {
    return false;
  }
  PyObject* torch = PyImport_ImportModule("torch");
  PyObject* nn = PyImport_ImportModule("torch.nn");
  bool found = torch && nn && (float32 = PyObject_GetAttrString(torch, "float32")) &&
               (int64 = PyObject_GetAttrString(torch, "int64")) &&
               (strided = PyObject_GetAttrString(torch, "strided")) &&
               (parameter_type = PyObject_GetAttrString(nn, "Parameter")) &&
               (tensor_type = PyObject_GetAttrString(torch, "Tensor"));
  Py_XDECREF(torch);
  Py_XDECREF(nn);
  if (found) find_exchange();
  return found;
}

// What becomes of a failure: what Python's slower way would meet again, and tell of, is forgotten.
static Reading failed(void) {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return kRaised;  // such as KeyboardInterrupt
  PyErr_Clear();
  return kUnusual;
}

// Whether an attribute, or what a method returns, is `expected`.
static Reading is(PyObject* value, PyObject* expected) {
  if (!value) return failed();
  Py_DECREF(value);
  return value == expected ? kRead : kUnusual;
}

// Notes the shape and where it begins. kUnusual where there is another number of dimensions or an empty one.
static Reading take(Array* array, void* data, Py_ssize_t dims, const int64_t* shape) {
  if (!data || dims < 1 || dims > kMostDims) return kUnusual;
  for (Py_ssize_t i = 0; i < dims; ++i) {
    if (shape[i] < 1) return kUnusual;
    array->shape[i] = shape[i];
  }
  array->data = data;
  array->dims = (int)dims;
  return kRead;
}

static bool contiguous(const DLTensor* tensor) {
  int64_t stride = 1;
  for (int32_t i = tensor->ndim - 1; i >= 0; --i) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride) return false;
    stride *= tensor->shape[i];
  }
  return true;
}

// kRead where memory has the tensor's own sign. The exchange API does not tell of the negative bit, by which torch
// marks imaginary parts of conjugated numbers in place of negating them. They lie two elements apart, so that only one
// alone is contiguous; and only then the question, which costs as much as all else, is asked.
static Reading not_negative(PyObject* object, const Array* array) {
  for (int i = 0; i < array->dims; ++i) {
    if (array->shape[i] != 1) return kRead;
  }
  return is(PyObject_CallMethodNoArgs(object, is_neg_name), Py_False);
}

// By the exchange API. It raises for what is no plain memory: sparse, quantized, meta, functorch's wrappers.
static Reading read_by_exchange(PyObject* object, Element element, Array* array) {
  DLTensor tensor;
  if (describe(object, &tensor)) return failed();
  DLDataType dtype = kElements[element].dlpack;
  if (tensor.device.device_type != kDLCPU || tensor.dtype.code != dtype.code || tensor.dtype.bits != dtype.bits ||
      tensor.dtype.lanes != dtype.lanes || !contiguous(&tensor) || !tensor.data) {
    return kUnusual;
  }
  Reading reading = take(array, (char*)tensor.data + tensor.byte_offset, tensor.ndim, tensor.shape);
  return reading == kRead && element == kFloat32 ? not_negative(object, array) : reading;
}

// By attributes, which takes five times as long.
static Reading read_by_attributes(PyObject* object, Element element, Array* array) {
  PyObject* dtype = element == kFloat32 ? float32 : int64;
  Reading reading = is(PyObject_GetAttr(object, layout_name), strided);
  if (reading == kRead) reading = is(PyObject_GetAttr(object, dtype_name), dtype);
  if (reading == kRead) reading = is(PyObject_GetAttr(object, is_cpu_name), Py_True);
  if (reading == kRead) reading = is(PyObject_CallMethodNoArgs(object, is_contiguous_name), Py_True);
  if (reading == kRead) reading = is(PyObject_CallMethodNoArgs(object, is_neg_name), Py_False);
  if (reading != kRead) return reading;
  PyObject* address = PyObject_CallMethodNoArgs(object, data_ptr_name);
  PyObject* sizes = address ? PyObject_GetAttr(object, shape_name) : NULL;
  if (sizes && PyTuple_Check(sizes)) {
    Py_ssize_t dims = PyTuple_GET_SIZE(sizes);
    int64_t shape[kMostDims];
    for (Py_ssize_t i = 0; i < dims && i < kMostDims; ++i) shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, i));
    reading = take(array, PyLong_AsVoidPtr(address), dims, shape);
  }
  Py_XDECREF(sizes);
  Py_XDECREF(address);
  return PyErr_Occurred() ? failed() : reading;
}

static Reading read_tensor(PyObject* object, Element element, bool written, Array* array) {
  Reading reading = describe ? read_by_exchange(object, element, array) : read_by_attributes(object, element, array);
  if (reading == kRead && written) reading = is(PyObject_GetAttr(object, requires_grad_name), Py_False);
  return reading;
}

static Reading read_buffer(PyObject* object, Element element, bool written, Array* array) {
  Py_buffer* buffer = &array->buffer;
  int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(object, buffer, flags)) {
    buffer->obj = NULL;
    return failed();
  }
  const char* format = buffer->format;
  int64_t shape[kMostDims];
  for (int i = 0; i < buffer->ndim && i < kMostDims; ++i) shape[i] = buffer->shape[i];
  bool ours = format && *format && !format[1] && strchr(kElements[element].formats, *format) &&
              (size_t)buffer->itemsize == kElements[element].size;
  return ours ? take(array, buffer->buf, buffer->ndim, shape) : kUnusual;
}

Reading array_read(PyObject* object, Element element, bool written, Array* array) {
  PyObject* type = (PyObject*)Py_TYPE(object);
  Reading reading = kUnusual;
  // Other classes of tensors may be anything, and say what they are by __torch_function__.
  if (type == tensor_type || type == parameter_type) {
    reading = read_tensor(object, element, written, array);
  } else if (PyObject_CheckBuffer(object)) {
    reading = read_buffer(object, element, written, array);
  }
  if (reading == kRead && (uintptr_t)array->data % kElements[element].size) reading = kUnusual;
  return reading;
}

void array_release(Array* array) {
  if (array->buffer.obj) PyBuffer_Release(&array->buffer);
}
