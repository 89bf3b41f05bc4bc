// fastrnn._stream: Door, the way from a Python call to a serving kernel, in a few hundred nanoseconds.
//
// What a call usually is, is checked here; everything else goes to the method _slowly of the class that is derived from
// it, which checks again, knows more and has the messages. fastrnn/streaming/plain_door.py is the same in Python and
// says what each method does.
//
// A door's fields are set once. What changes is the view, which is touched only by whoever has the busy flag, and two
// flags that are read and written atomically, so nothing here relies on the interpreter's lock.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "array.h"

#ifdef _MSC_VER
#include <intrin.h>
static int64_t exchange(int64_t* flag, int64_t value) { return _InterlockedExchange64(flag, value); }
static int64_t load(int64_t* flag) { return _InterlockedOr64(flag, 0); }
#else
static int64_t exchange(int64_t* flag, int64_t value) { return __atomic_exchange_n(flag, value, __ATOMIC_ACQ_REL); }
static int64_t load(int64_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
#endif

// The numbers of a kernel's block.
enum { kInput, kOutput, kSteps, kRows, kSlots, kStatus, kBusy };

// Multiplications from which on a call releases the interpreter's lock: some 50 µs. A shorter one keeps it, since a
// thread that takes it in between gives it back after 5 ms.
enum { kReleased = 1000000 };

typedef struct {
  PyObject_HEAD vectorcallfunc vectorcall;
  void (*kernel)(void*);
  int64_t* block;
  int64_t features, outputs, steps, batch, slots, work;
  int batch_first;
  int64_t shut;  // 0 or 1
  // The output of the last call without one of its own, and what it was made for.
  PyObject* view;
  void* view_data;
  int64_t view_rows, view_steps;
  int view_dims;
} Door;

typedef struct {
  PyObject *x, *out, *slots;  // borrowed; None where not given
} Arguments;

// A call whose arguments are what is usual.
typedef struct {
  Array x, out, slots;
  int64_t rows, steps;
} Call;

static PyObject *slowly_name, *x_name, *out_name, *slots_name;

static bool enter(Door* self) {
  if (!self->block) {
    PyErr_SetString(PyExc_RuntimeError, "Door: __init__ was not called");
  } else if (exchange(self->block + kBusy, 1)) {
    PyErr_SetString(PyExc_RuntimeError, "Stream: another thread is using this stream");
  } else {
    return true;
  }
  return false;
}

static void leave(Door* self) { exchange(self->block + kBusy, 0); }

// Calls the kernel. Returns its status.
static int64_t start(Door* self, void* x, void* out, int64_t steps, int64_t rows, void* slots) {
  int64_t* block = self->block;
  block[kInput] = (int64_t)(intptr_t)x;
  block[kOutput] = (int64_t)(intptr_t)out;
  block[kSteps] = steps;
  block[kRows] = rows;
  block[kSlots] = (int64_t)(intptr_t)slots;
  if ((double)rows * (double)steps * (double)self->work > kReleased) {
    Py_BEGIN_ALLOW_THREADS;
    self->kernel(block);
    Py_END_ALLOW_THREADS;
  } else {
    self->kernel(block);
  }
  return block[kStatus];
}

// Reads x, and finds out how many rows and steps it has.
static Reading read_input(Door* self, PyObject* x, Call* call) {
  Reading reading = array_read(x, kFloat32, false, &call->x);
  if (reading != kRead) return reading;
  const int64_t* shape = call->x.shape;
  int dims = call->x.dims;
  if (dims < 2 || shape[dims - 1] != self->features) return kUnusual;
  call->rows = dims == 2 || self->batch_first ? shape[0] : shape[1];
  call->steps = dims == 2 ? 1 : shape[self->batch_first];
  bool fits = call->steps <= self->steps && (self->slots ? call->rows <= self->batch : call->rows == self->batch);
  return fits ? kRead : kUnusual;
}

static Reading read_output(Door* self, PyObject* out, Call* call) {
  if (out == Py_None) return kRead;
  Reading reading = array_read(out, kFloat32, true, &call->out);
  if (reading != kRead) return reading;
  int dims = call->x.dims;
  if (call->out.dims != dims || call->out.shape[dims - 1] != self->outputs) return kUnusual;
  for (int i = 0; i < dims - 1; ++i) {
    if (call->out.shape[i] != call->x.shape[i]) return kUnusual;
  }
  return kRead;
}

static Reading read_slots(Door* self, PyObject* slots, Call* call) {
  if ((slots == Py_None) != !self->slots) return kUnusual;
  if (slots == Py_None) return kRead;
  Reading reading = array_read(slots, kInt64, false, &call->slots);
  if (reading != kRead) return reading;
  return call->slots.dims == 1 && call->slots.shape[0] == call->rows ? kRead : kUnusual;
}

static Reading read_call(Door* self, const Arguments* given, Call* call) {
  Reading reading = read_input(self, given->x, call);
  if (reading == kRead) reading = read_output(self, given->out, call);
  if (reading == kRead) reading = read_slots(self, given->slots, call);
  return reading;
}

// Has _view make the output of calls like this one, and keeps it. False with an exception set.
static bool make_view(Door* self, const Call* call) {
  PyObject* made =
      PyObject_CallMethod((PyObject*)self, "_view", "LLi", (long long)call->rows, (long long)call->steps, call->x.dims);
  if (!made) return false;
  void* data = NULL;
  if (!PyTuple_Check(made) || PyTuple_GET_SIZE(made) != 2 || !PyLong_Check(PyTuple_GET_ITEM(made, 1))) {
    PyErr_SetString(PyExc_TypeError, "_view must return an output and its address");
  } else if (!(data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(made, 1))) && !PyErr_Occurred()) {
    PyErr_SetString(PyExc_ValueError, "_view must return an address other than 0");
  }
  if (data) {
    PyObject* before = self->view;
    self->view = Py_NewRef(PyTuple_GET_ITEM(made, 0));
    self->view_data = data;
    self->view_rows = call->rows;
    self->view_steps = call->steps;
    self->view_dims = call->x.dims;
    Py_XDECREF(before);
  }
  Py_DECREF(made);
  return data;
}

// The door's own output for a call, a new reference, and at `data` its memory. NULL with an exception set.
static PyObject* own_output(Door* self, const Call* call, void** data) {
  bool kept =
      self->view && self->view_rows == call->rows && self->view_steps == call->steps && self->view_dims == call->x.dims;
  if (!kept && !make_view(self, call)) return NULL;
  *data = self->view_data;
  return Py_NewRef(self->view);
}

static bool overlap(const void* one, int64_t one_bytes, const void* other, int64_t other_bytes) {
  uintptr_t a = (uintptr_t)one, b = (uintptr_t)other;
  return a < b + (uintptr_t)other_bytes && b < a + (uintptr_t)one_bytes;
}

// Computes. On kRead `result` is the call's, a new reference.
static Reading compute(Door* self, const Arguments* given, const Call* call, PyObject** result) {
  if (load(&self->shut)) return kUnusual;  // first: whoever shut it may have given the block back
  if (!enter(self)) return kRaised;
  // From here on nothing returns before leave.
  Reading reading = kUnusual;
  void* out = call->out.data;
  PyObject* output = NULL;
  if (!load(&self->shut)) {
    output = given->out == Py_None ? own_output(self, call, &out) : Py_NewRef(given->out);
    if (!output) reading = kRaised;
  }
  if (output) {
    int64_t elements = call->rows * call->steps, bytes = elements * self->outputs * (int64_t)sizeof(float);
    if (!overlap(out, bytes, call->x.data, elements * self->features * (int64_t)sizeof(float)) &&
        !overlap(out, bytes, call->slots.data, call->rows * (int64_t)sizeof(int64_t)) &&
        !start(self, call->x.data, out, call->steps, call->rows, call->slots.data)) {
      reading = kRead;
    }
  }
  leave(self);
  if (reading == kRead) {
    *result = output;
  } else {
    Py_XDECREF(output);
  }
  return reading;
}

static PyObject* run(Door* self, const Arguments* given) {
  PyObject* result = NULL;
  Reading reading = kUnusual;
  if (!load(&self->shut)) {
    Call call;
    call.x.buffer.obj = call.out.buffer.obj = call.slots.buffer.obj = NULL;
    call.slots.data = NULL;
    reading = read_call(self, given, &call);
    if (reading == kRead) reading = compute(self, given, &call, &result);
    array_release(&call.x);
    array_release(&call.out);
    array_release(&call.slots);
  }
  if (reading != kUnusual) return result;
  PyObject* all[] = {(PyObject*)self, given->x, given->out, given->slots};
  return PyObject_VectorcallMethod(slowly_name, all, 4, NULL);
}

static bool named(PyObject* name, PyObject* expected) {
  return name == expected || PyUnicode_Compare(name, expected) == 0;
}

// Notes the keyword argument `name`. False with a TypeError set if there is none of that name, or x twice.
static bool take_keyword(Arguments* given, PyObject* name, PyObject* value) {
  if (named(name, out_name)) {
    given->out = value;
  } else if (named(name, slots_name)) {
    given->slots = value;
  } else if (!named(name, x_name)) {
    PyErr_Format(PyExc_TypeError, "__call__() got an unexpected keyword argument '%U'", name);
    return false;
  } else if (given->x) {
    PyErr_SetString(PyExc_TypeError, "__call__() got multiple values for argument 'x'");
    return false;
  } else {
    given->x = value;
  }
  return true;
}

static bool complete(const Arguments* given, Py_ssize_t positional) {
  if (positional > 1) {
    PyErr_Format(PyExc_TypeError, "__call__() takes one positional argument, x, but %zd were given", positional);
  } else if (!given->x) {
    PyErr_SetString(PyExc_TypeError, "__call__() missing 1 required positional argument: 'x'");
  } else {
    return true;
  }
  return false;
}

static PyObject* door_vectorcall(PyObject* self, PyObject* const* values, size_t flagged, PyObject* names) {
  Py_ssize_t positional = PyVectorcall_NARGS(flagged), keywords = names ? PyTuple_GET_SIZE(names) : 0;
  Arguments given = {positional ? values[0] : NULL, Py_None, Py_None};
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    if (!take_keyword(&given, PyTuple_GET_ITEM(names, i), values[positional + i])) return NULL;
  }
  return complete(&given, positional) ? run((Door*)self, &given) : NULL;
}

// Up to Python 3.11 classes that are derived from a door are called this way.
static PyObject* door_call(PyObject* self, PyObject* values, PyObject* keywords) {
  Py_ssize_t positional = PyTuple_GET_SIZE(values), at = 0;
  Arguments given = {positional ? PyTuple_GET_ITEM(values, 0) : NULL, Py_None, Py_None};
  PyObject *name, *value;
  while (keywords && PyDict_Next(keywords, &at, &name, &value)) {
    if (!take_keyword(&given, name, value)) return NULL;
  }
  return complete(&given, positional) ? run((Door*)self, &given) : NULL;
}

static PyObject* door_new(PyTypeObject* type, PyObject* values, PyObject* keywords) {
  (void)values, (void)keywords;  // __init__'s
  Door* self = (Door*)type->tp_alloc(type, 0);
  if (self) {
    self->vectorcall = door_vectorcall;
    self->shut = 1;  // until __init__: a call goes to _slowly
  }
  return (PyObject*)self;
}

static int door_init(PyObject* object, PyObject* values, PyObject* keywords) {
  static char* names[] = {"kernel", "block",       "features", "outputs", "steps",
                          "batch",  "batch_first", "slots",    "work",    NULL};
  Door* self = (Door*)object;
  long long kernel, block, features, outputs, steps, batch, slots, work;
  int batch_first;
  if (!PyArg_ParseTupleAndKeywords(values, keywords, "$LLLLLLpLL:Door", names, &kernel, &block, &features, &outputs,
                                   &steps, &batch, &batch_first, &slots, &work)) {
    return -1;
  }
  if (kernel < 1 || block < 1 || features < 1 || outputs < 1 || steps < 1 || batch < 1 || slots < 0 || work < 0) {
    PyErr_SetString(PyExc_ValueError, "Door: addresses and sizes must be positive, slots and work not negative");
    return -1;
  }
  if (self->block) {
    PyErr_SetString(PyExc_RuntimeError, "Door: __init__ was called before");
    return -1;
  }
  self->kernel = (void (*)(void*))(intptr_t)kernel;
  self->block = (int64_t*)(intptr_t)block;
  self->features = features;
  self->outputs = outputs;
  self->steps = steps;
  self->batch = batch;
  self->batch_first = batch_first;
  self->slots = slots;
  self->work = work;
  exchange(&self->shut, 0);
  return 0;
}

static int door_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(((Door*)self)->view);
  return 0;
}

static int door_clear(PyObject* self) {
  Py_CLEAR(((Door*)self)->view);
  return 0;
}

static void door_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  door_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyObject* door_enter(PyObject* self, PyObject* nothing) {
  (void)nothing;
  return enter((Door*)self) ? Py_NewRef(Py_None) : NULL;
}

static PyObject* door_leave(PyObject* self, PyObject* nothing) {
  (void)nothing;
  if (((Door*)self)->block) leave((Door*)self);
  Py_RETURN_NONE;
}

static PyObject* door_shut(PyObject* self, PyObject* nothing) {
  (void)nothing;
  exchange(&((Door*)self)->shut, 1);
  door_clear(self);
  Py_RETURN_NONE;
}

static PyObject* door_start(PyObject* object, PyObject* values) {
  Door* self = (Door*)object;
  long long x, out, steps, rows, slots;
  if (!PyArg_ParseTuple(values, "LLLLL:_start", &x, &out, &steps, &rows, &slots)) return NULL;
  if (!self->block) {
    PyErr_SetString(PyExc_RuntimeError, "Door: __init__ was not called");
    return NULL;
  }
  int64_t status = start(self, (void*)(intptr_t)x, (void*)(intptr_t)out, steps, rows, (void*)(intptr_t)slots);
  return PyErr_Occurred() ? NULL : PyLong_FromLongLong(status);
}

static PyMethodDef door_methods[] = {
    {"_enter", door_enter, METH_NOARGS, "Takes the stream for this thread. Raises RuntimeError where another has it."},
    {"_leave", door_leave, METH_NOARGS, "Gives it back."},
    {"_shut", door_shut, METH_NOARGS, "Sends all further calls to _slowly and lets go of the output."},
    {"_start", door_start, METH_VARARGS, "Calls the kernel. Returns its status."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef door_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Door, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot door_slots[] = {
    {Py_tp_doc, "What calls a serving kernel: see fastrnn.streaming.plain_door."},
    {Py_tp_new, door_new},
    {Py_tp_init, door_init},
    {Py_tp_dealloc, door_dealloc},
    {Py_tp_traverse, door_traverse},
    {Py_tp_clear, door_clear},
    {Py_tp_call, door_call},
    {Py_tp_methods, door_methods},
    {Py_tp_members, door_members},
    {0, NULL},
};

static PyType_Spec door_spec = {
    .name = "fastrnn._stream.Door",
    .basicsize = sizeof(Door),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = door_slots,
};

static int execute(PyObject* module) {
  if (!INTERNED(slowly_name, "_slowly") || !INTERNED(x_name, "x") || !INTERNED(out_name, "out") ||
      !INTERNED(slots_name, "slots") || !array_prepare()) {
    return -1;
  }
  PyObject* type = PyType_FromModuleAndSpec(module, &door_spec, NULL);
  if (!type) return -1;
  int status = PyModule_AddType(module, (PyTypeObject*)type);
  Py_DECREF(type);
  return status ? status : PyModule_AddIntConstant(module, "RELEASED", kReleased);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},  // as torch
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fastrnn._stream",
    .m_doc = "The way from Python to a serving kernel.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__stream(void) { return PyModuleDef_Init(&module_def); }
