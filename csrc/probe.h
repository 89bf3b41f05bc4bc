#pragma once

#include "planner.h"

namespace fastrnn {

// What `device` can do, looked up once for each. Throws std::runtime_error where CUDA fails.
const Limits& limits(int device);

// The architecture whose code `device` runs, as 900 for sm_90a, found by running a kernel there. Throws
// std::runtime_error where the device has no code in this build or the driver does not accept it.
int probe(int device);

}  // namespace fastrnn
