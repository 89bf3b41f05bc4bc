#include "planner.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace fastrnn {
namespace {

constexpr int kFirstWithClusters = 90;                                // sm_90: capability 9.0
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();  // of a grid, along x

template <class Kind, int N>
Kind parse(const std::string& text, const Kind (&kinds)[N], const char* what) {
  std::string expected;
  for (const Kind kind : kinds) {
    if (text == name(kind)) return kind;
    expected += (expected.empty() ? "" : ", ") + std::string(name(kind));
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + expected + ", got " + text);
}

// Whether a device of that capability runs code for `architecture`: "90" is for 9.0 and later of the same generation,
// "100f" likewise, "90a" for 9.0 alone. The last digit is the minor number.
bool runs(const std::string& architecture, const Limits& limits) {
  const int number = std::stoi(architecture);
  if (number < kFirstWithClusters || number / 10 != limits.major) return false;
  return architecture.back() == 'a' ? number % 10 == limits.minor : number % 10 <= limits.minor;
}

// Why the device runs none of the kernels, or nothing.
std::string why_not_here(const Limits& limits, const std::string& architectures) {
  std::ostringstream why;
  if (limits.major * 10 + limits.minor < kFirstWithClusters) {
    why << "it needs a device of capability 9.0 or later, got " << limits.major << '.' << limits.minor;
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

bool fits(const Geometry& geometry, const Limits& limits) {
  return geometry.shared_bytes <= limits.shared_memory && geometry.blocks <= limits.cluster &&
         geometry.blocks <= limits.multiprocessors;
}

}  // namespace

Plan plan(const std::vector<Geometry>& compiled, const Request& request, const Limits& limits,
          const std::string& architectures) {
  Plan result{-1, 0, why_not_here(limits, architectures)};
  if (!result.reason.empty()) return result;
  int largest = 0;
  const Geometry* too_large = nullptr;  // the first that would serve but does not fit
  for (size_t i = 0; i < compiled.size(); ++i) {
    const Geometry& one = compiled[i];
    if (one.operation != request.operation || one.cell != request.cell || one.element != request.element) continue;
    largest = std::max(largest, one.units);
    if (one.units < request.units) continue;
    if (!fits(one, limits)) {
      if (too_large == nullptr) too_large = &one;
      continue;
    }
    result.clusters = (request.batch + one.rows - 1) / one.rows * request.heads * request.directions;
    if (result.clusters > kMostBlocks / one.blocks) {
      result.reason = "it would need " + std::to_string(result.clusters) + " clusters of " +
                      std::to_string(one.blocks) + " blocks, more than a grid holds";
    } else {
      result.chosen = static_cast<int>(i);
    }
    return result;
  }
  std::ostringstream why;
  if (too_large != nullptr) {
    why << describe(*too_large) << " does not fit the device, which has " << limits.multiprocessors
        << " multiprocessors, clusters of up to " << limits.cluster << " blocks and " << limits.shared_memory
        << " bytes of shared memory for a block";
  } else {
    why << "it takes heads of up to " << largest << " units for " << name(request.cell) << " in "
        << name(request.element) << ", got " << request.units;
  }
  result.reason = why.str();
  return result;
}

const char* name(Operation operation) { return operation == Operation::kForward ? "forward" : "backward"; }

const char* name(CellKind cell) {
  switch (cell) {
    case CellKind::kRnnTanh:
      return "rnn_tanh";
    case CellKind::kRnnRelu:
      return "rnn_relu";
    case CellKind::kLstm:
      return "lstm";
    case CellKind::kGru:
      return "gru";
  }
  throw std::invalid_argument("no such cell");
}

const char* name(ElementKind element) { return element == ElementKind::kBfloat16 ? "bfloat16" : "float16"; }

Operation parse_operation(const std::string& text) {
  constexpr Operation kinds[] = {Operation::kForward, Operation::kBackward};
  return parse(text, kinds, "operation");
}

CellKind parse_cell(const std::string& text) {
  constexpr CellKind kinds[] = {CellKind::kRnnTanh, CellKind::kRnnRelu, CellKind::kLstm, CellKind::kGru};
  return parse(text, kinds, "cell");
}

ElementKind parse_element(const std::string& text) {
  constexpr ElementKind kinds[] = {ElementKind::kBfloat16, ElementKind::kFloat16};
  return parse(text, kinds, "element");
}

std::string describe(const Geometry& geometry) {
  std::ostringstream text;
  text << name(geometry.operation) << "_kernel<" << name(geometry.cell) << ", " << name(geometry.element) << ", "
       << geometry.units << " units> in clusters of " << geometry.blocks << " blocks of " << geometry.threads
       << " threads and " << geometry.shared_bytes << " bytes of shared memory";
  return text.str();
}

}  // namespace fastrnn
