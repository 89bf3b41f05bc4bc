#include "planner.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace fastrnn {
namespace {

constexpr int kFirst = 80;  // sm_80: capability 8.0
constexpr int kFirstWithClusters = 90;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();  // of a grid, along x
constexpr int kMostBatchTiles = 16;                                   // of a team: more hide no more latency
constexpr int kLargestPreferred = 8;  // blocks of a cluster that is preferred to a block on its own
constexpr int kPartSize = 16;  // multiprocessors at least of a part of a device, in which a cluster lies: some have 18

template <class Kind, int N>
Kind parse(const std::string& text, const Kind (&kinds)[N], const char* what) {
  std::string expected;
  for (const Kind kind : kinds) {
    if (text == name(kind)) return kind;
    expected += (expected.empty() ? "" : ", ") + std::string(name(kind));
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + expected + ", got " + text);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a device of that capability runs code for `architecture`: "90" is for 9.0 and later of the same generation,
// "100f" likewise, "90a" for 9.0 alone. The last digit is the minor number.
bool runs(const std::string& architecture, const Limits& limits) {
  const int number = std::stoi(architecture);
  if (number < kFirst || number / 10 != limits.major) return false;
  return architecture.back() == 'a' ? number % 10 == limits.minor : number % 10 <= limits.minor;
}

// Why the device runs none of the kernels, or nothing.
std::string why_not_here(const Limits& limits, const std::string& architectures) {
  std::ostringstream why;
  if (limits.major * 10 + limits.minor < kFirst) {
    why << "it needs a device of capability 8.0 or later, got " << limits.major << '.' << limits.minor;
    return why.str();
  }
  std::istringstream list(architectures);
  std::string listed;
  for (std::string one; std::getline(list, one, ':'); listed += (listed.empty() ? "sm_" : ", sm_") + one) {
    if (runs(one, limits)) return "";
  }
  why << "its kernels were compiled for " << listed << ", which a device of capability " << limits.major << '.'
      << limits.minor << " does not run";
  return why.str();
}

// How a cluster kernel serves `request`. Clusters that the device has no room for wait for others to end.
Plan plan_cluster(const Geometry& one, const Request& request) {
  Plan result;
  result.groups = divide_up(request.batch, one.rows) * request.heads * request.directions;
  result.blocks = one.blocks;
  result.shared_bytes = one.shared_bytes;
  return result;
}

// How a grid kernel does. All blocks of a team must run at once, so that there are no more teams than the device has
// room for; each takes one head and direction and some tiles of the batch after another.
Plan plan_grid(const Geometry& one, const Request& request, const Limits& limits) {
  const Spread& spread = one.spread;
  Plan result;
  result.blocks = static_cast<int>(divide_up(request.units, spread.block_units));
  const int64_t room = std::max<int64_t>(1, limits.multiprocessors / result.blocks);
  const int64_t jobs = request.heads * request.directions, tiles = divide_up(request.batch, one.rows);
  const int64_t of_job = std::max<int64_t>(1, room / jobs);  // teams
  const int64_t tiles_of_warp = divide_up(request.units, spread.slice_units) * spread.slice_tiles;
  const int64_t kept = std::max<int64_t>(0, tiles_of_warp - spread.register_tiles) * spread.tile_bytes;
  const int64_t fixed = one.shared_bytes + kept * (one.threads / 32);
  const int64_t fit = std::max<int64_t>(1, (limits.shared_memory - fixed) / spread.batch_tile_bytes);
  const int64_t at_once = std::min({divide_up(tiles, of_job), fit, int64_t(kMostBatchTiles)});
  result.batch_tiles = static_cast<int>(at_once);
  result.groups = std::min(room, jobs * divide_up(tiles, at_once));
  result.shared_bytes = static_cast<int>(fixed + at_once * spread.batch_tile_bytes);
  return result;
}

bool fits(const Geometry& geometry, const Plan& plan, const Limits& limits) {
  return plan.shared_bytes <= limits.shared_memory && plan.blocks <= limits.multiprocessors &&
         (geometry.way == Way::kGrid || plan.blocks <= limits.cluster);
}

bool is_among(const Geometry& geometry, Only only) {
  if (only == Only::kGrid) return geometry.way == Way::kGrid;
  return geometry.way == Way::kCluster && (only == Only::kCluster || geometry.blocks == 1);
}

// Whether a block on its own is slower than a cluster, be it one for larger heads, as measured on an H200: a step of
// training an LSTM in bfloat16, at B = 16, takes a block 3.66 us for 128 units, a cluster of eight 2.06 us for 256; in
// TF32, at B = 64, a block 2.92 us for 64 units, a cluster of four 2.25 us for 128. Forward in 16 bits a block is as
// fast or nearly so: 0.50 us for 64 units and 1.02 for 128, a cluster of eight 0.86 us for 256.
bool block_is_slow(const Geometry& geometry) {
  return geometry.way == Way::kCluster && geometry.blocks == 1 &&
         (geometry.operation == Operation::kBackward || geometry.element == ElementKind::kTf32);
}

// Whether clusters are better than such blocks: they take more multiprocessors, and must not take turns.
bool is_faster_than_block(const Geometry& geometry, const Plan& plan, const Limits& limits) {
  return geometry.way == Way::kCluster && plan.blocks > 1 && plan.blocks <= kLargestPreferred &&
         plan.groups <= limits.multiprocessors / kPartSize * (kPartSize / plan.blocks);
}

}  // namespace

Plan plan(const std::vector<Geometry>& compiled, const Request& request, const Limits& limits,
          const std::string& architectures) {
  Plan none;
  none.reason = why_not_here(limits, architectures);
  if (!none.reason.empty()) return none;
  int largest = 0;
  std::string too_large;  // the last that would serve but does not fit
  Plan block;             // one that serves, where a cluster may be faster
  for (size_t i = 0; i < compiled.size(); ++i) {
    const Geometry& one = compiled[i];
    if (one.operation != request.operation || one.cell != request.cell || one.element != request.element) continue;
    if (request.only && !is_among(one, *request.only)) continue;
    if (one.way == Way::kCluster && limits.major * 10 + limits.minor < kFirstWithClusters) continue;
    largest = std::max(largest, one.units);
    if (one.units < request.units) continue;
    Plan result = one.way == Way::kCluster ? plan_cluster(one, request) : plan_grid(one, request, limits);
    result.chosen = static_cast<int>(i);
    if (!fits(one, result, limits)) {
      too_large = describe(one, result.blocks, result.shared_bytes);
    } else if (block.chosen >= 0) {
      if (is_faster_than_block(one, result, limits)) return result;
    } else if (result.groups > kMostBlocks / result.blocks) {
      none.reason = "it would need " + std::to_string(result.groups) + " clusters of " + std::to_string(result.blocks) +
                    " blocks, more than a grid holds";
      return none;
    } else if (block_is_slow(one)) {
      block = result;
    } else {
      return result;
    }
  }
  if (block.chosen >= 0) return block;
  const std::string among = request.only ? std::string(" under FASTRNN_CUDA_WAY=") + name(*request.only) : "";
  std::ostringstream why;
  if (!too_large.empty()) {
    why << too_large << " does not fit the device, which has " << limits.multiprocessors
        << " multiprocessors, clusters of up to " << limits.cluster << " blocks and " << limits.shared_memory
        << " bytes of shared memory for a block";
  } else {
    if (largest == 0) {
      why << "it has no kernel for " << name(request.cell) << " in " << name(request.element) << among;
    } else {
      why << "it takes heads of up to " << largest << " units for " << name(request.cell) << " in "
          << name(request.element) << among << ", got " << request.units;
    }
  }
  none.reason = why.str();
  return none;
}

const char* name(Way way) { return way == Way::kCluster ? "cluster" : "grid"; }

const char* name(Only only) {
  switch (only) {
    case Only::kCluster:
      return "cluster";
    case Only::kBlock:
      return "block";
    case Only::kGrid:
      return "grid";
  }
  throw std::invalid_argument("no such way");
}

const char* name(Operation operation) { return operation == Operation::kForward ? "forward" : "backward"; }

const char* name(CellKind cell) {
  if (cell == kOtherCell) return "this cell";
  switch (cell) {
#define FASTRNN_NAME(Cell, name) \
  case CellKind::k##Cell:        \
    return #name;
    FASTRNN_CELLS(FASTRNN_NAME)
#undef FASTRNN_NAME
  }
  throw std::invalid_argument("no such cell");
}

const char* name(ElementKind element) {
  switch (element) {
    case ElementKind::kBfloat16:
      return "bfloat16";
    case ElementKind::kFloat16:
      return "float16";
    case ElementKind::kTf32:
      return "tf32";
  }
  throw std::invalid_argument("no such element");
}

Only parse_only(const std::string& text) {
  constexpr Only kinds[] = {Only::kCluster, Only::kBlock, Only::kGrid};
  return parse(text, kinds, "way");
}

Operation parse_operation(const std::string& text) {
  constexpr Operation kinds[] = {Operation::kForward, Operation::kBackward};
  return parse(text, kinds, "operation");
}

CellKind parse_cell(const std::string& text) {
#define FASTRNN_KIND(Cell, name) CellKind::k##Cell,
  constexpr CellKind kinds[] = {FASTRNN_CELLS(FASTRNN_KIND)};
#undef FASTRNN_KIND
  return parse(text, kinds, "cell");
}

ElementKind parse_element(const std::string& text) {
  constexpr ElementKind kinds[] = {ElementKind::kBfloat16, ElementKind::kFloat16, ElementKind::kTf32};
  return parse(text, kinds, "element");
}

std::string describe(const Geometry& geometry, int blocks, int shared_bytes) {
  std::ostringstream text;
  text << name(geometry.way) << "_" << name(geometry.operation) << "_kernel<" << name(geometry.cell) << ", "
       << name(geometry.element) << ", " << geometry.units << " units> in "
       << (geometry.way == Way::kCluster ? "clusters" : "teams") << " of " << blocks << " blocks of "
       << geometry.threads << " threads and " << shared_bytes << " bytes of shared memory";
  return text.str();
}

}  // namespace fastrnn
