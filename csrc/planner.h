// Which compiled kernel serves a recurrence on a device, or why none does. Plain C++, for any machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"

namespace fastrnn {

enum class Operation { kForward, kBackward };

// A compiled kernel: what it computes and how it is launched.
struct Geometry {
  Operation operation;
  CellKind cell;
  ElementKind element;
  int units;         // of a head at most
  int blocks;        // of a cluster
  int threads;       // of a block
  int rows;          // sequences of a cluster
  int shared_bytes;  // of a block
};

// A recurrence to compute.
struct Request {
  Operation operation;
  CellKind cell;
  ElementKind element;
  int64_t units;  // of a head: H / heads
  int64_t batch, heads, directions;
};

// What a device can do.
struct Limits {
  int major, minor;       // its capability
  int multiprocessors;    // a block of a cluster takes one
  int64_t shared_memory;  // bytes that one block may ask for
  int cluster;            // blocks of the largest cluster that it runs
};

struct Plan {
  int chosen;          // index of the kernel, or -1
  int64_t clusters;    // how many are launched
  std::string reason;  // where there is no kernel: why, as a clause
};

// Of `compiled`, ordered by units within an operation, cell and element, the kernel with the fewest units that serves
// `request` on a device with `limits`. `architectures` are those that the kernels were compiled for, as "80:90a".
Plan plan(const std::vector<Geometry>& compiled, const Request& request, const Limits& limits,
          const std::string& architectures);

const char* name(Operation operation);
const char* name(CellKind cell);
const char* name(ElementKind element);

// By name, as "forward", "rnn_tanh", "bfloat16"; throw std::invalid_argument for another.
Operation parse_operation(const std::string& text);
CellKind parse_cell(const std::string& text);
ElementKind parse_element(const std::string& text);

// The kernel and its configuration, for errors: "forward_kernel<lstm, bfloat16, 512 units> in clusters of 16 blocks
// ...".
std::string describe(const Geometry& geometry);

}  // namespace fastrnn
