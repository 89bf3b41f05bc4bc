// Which compiled kernel serves a recurrence on a device, or why none does. Plain C++, for any machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "geometry.h"

namespace fastrnn {

// Which kernels alone a request may be served by: those of a way, or the cluster kernels of one block.
enum class Only { kCluster, kBlock, kGrid };

// A cell that the extension has no kernels for. Those of one that is compiled while a program runs are planned under
// this kind, a table of its own for each.
constexpr CellKind kOtherCell = static_cast<CellKind>(-1);

// A recurrence to compute.
struct Request {
  Operation operation;
  CellKind cell;
  ElementKind element;
  int64_t units;  // of a head: H / heads
  int64_t batch, heads, directions;
  std::optional<Only> only;  // of all kernels, where not all of them
};

// What a device can do.
struct Limits {
  int major, minor;       // its capability
  int multiprocessors;    // a block of a cluster or a team takes one
  int64_t shared_memory;  // bytes that one block may ask for
  int cluster;            // blocks of the largest cluster that it runs, 0 where it has none
};

struct Plan {
  int chosen = -1;       // index of the kernel, or -1
  std::string reason;    // where there is no kernel: why, as a clause
  int64_t groups = 0;    // clusters or teams that are launched
  int blocks = 0;        // of each of them
  int batch_tiles = 1;   // that a team computes in turn within a step; of a cluster 1
  int shared_bytes = 0;  // of a block
};

// Of `compiled`, the kernel that serves `request` on a device with `limits`: the first, since those of an operation,
// cell and element are ordered by preference; or instead of a block on its own, where it is slower, the first cluster
// of up to eight blocks. `architectures` are those that the kernels were compiled for, as "80:90a".
Plan plan(const std::vector<Geometry>& compiled, const Request& request, const Limits& limits,
          const std::string& architectures);

const char* name(Way way);
const char* name(Only only);
const char* name(Operation operation);
const char* name(CellKind cell);
const char* name(ElementKind element);

// By name, as "block", "forward", "rnn_tanh", "bfloat16"; throw std::invalid_argument for another.
Only parse_only(const std::string& text);
Operation parse_operation(const std::string& text);
CellKind parse_cell(const std::string& text);
ElementKind parse_element(const std::string& text);

// The kernel and its configuration, for errors: "cluster_forward_kernel<lstm, bfloat16, 512 units> with 16 blocks ...".
std::string describe(const Geometry& geometry, int blocks, int shared_bytes);

}  // namespace fastrnn
