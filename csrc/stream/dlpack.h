// What is read of DLPack's C exchange API, as version 1.3 of its ABI lays it out (github.com/dmlc/dlpack,
// include/dlpack/dlpack.h, Apache 2.0). Only what the door needs; no header of torch is, which keeps one build good for
// every torch.
#pragma once

#include <stdint.h>

enum { kDLPackMajor = 1 };          // another major version lays the table out in another way
enum { kDLCPU = 1 };                // of DLDevice
enum { kDLInt = 0, kDLFloat = 2 };  // of DLDataType

typedef struct {
  uint32_t major;
  uint32_t minor;
} DLPackVersion;

typedef struct {
  int32_t device_type;
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;      // in elements
  uint64_t byte_offset;  // of the first element from data
} DLTensor;

typedef struct DLPackExchangeAPIHeader {
  DLPackVersion version;
  struct DLPackExchangeAPIHeader* prev_api;  // a table of an older major version, or NULL
} DLPackExchangeAPIHeader;

typedef struct {
  DLPackExchangeAPIHeader header;
  void (*managed_tensor_allocator)(void);
  void (*managed_tensor_from_py_object_no_sync)(void);
  void (*managed_tensor_to_py_object_no_sync)(void);
  // Describes a tensor without owning it: shape and strides are the tensor's own. 0, or -1 with an exception set. May
  // be NULL.
  int (*dltensor_from_py_object_no_sync)(void* tensor, DLTensor* out);
  void (*current_work_stream)(void);
} DLPackExchangeAPI;
