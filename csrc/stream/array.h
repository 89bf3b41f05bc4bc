// Memory that a caller hands over: a tensor or what has the buffer protocol, read without making anything.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

enum { kMostDims = 3 };

typedef struct {
  void* data;
  int dims;
  int64_t shape[kMostDims];
  Py_buffer buffer;  // held where its obj is not NULL
} Array;

// What elements are.
typedef enum { kFloat32, kInt64 } Element;

typedef enum {
  kRaised = -1,  // an exception is set
  kUnusual = 0,  // what only Python's slower way can judge; no exception is set
  kRead = 1,
} Reading;

// Looks up what tensors are told by. Returns whether that went well, else with an exception set.
bool array_prepare(void);

// Reads `object` if it is on the CPU, C-contiguous, aligned, of `element` and has 1 to kMostDims dimensions, none of
// them empty; and where it is to be `written`, if it may be. The memory stays until array_release, which must follow,
// provided that somebody else holds `object`.
Reading array_read(PyObject* object, Element element, bool written, Array* array);

void array_release(Array* array);

// Whether a name looked up once is in memory: a string that is never given back.
#define INTERNED(variable, text) ((variable) || ((variable) = PyUnicode_InternFromString(text)))
