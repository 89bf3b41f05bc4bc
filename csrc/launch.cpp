#include "launch.h"

#include <cstdlib>
#include <stdexcept>

#include "probe.h"

#define FASTRNN_TEXT_OF(tokens) #tokens
#define FASTRNN_TEXT(macro) FASTRNN_TEXT_OF(macro)

namespace fastrnn {
namespace {

// A ForwardTable or a BackwardTable, of all cells: a cell's clusters come before its teams.
template <class Table>
const Table& kernels() {
  static const Table all = [] {
    Table table;
#ifndef FASTRNN_NO_CLUSTERS
#define FASTRNN_ADD(Cell, name) cluster::add<Cell>(table);
    FASTRNN_CELLS(FASTRNN_ADD)
#undef FASTRNN_ADD
#endif
#define FASTRNN_ADD(Cell, name) grid::add<Cell>(table);
    FASTRNN_CELLS(FASTRNN_ADD)
#undef FASTRNN_ADD
    return table;
  }();
  return all;
}

// `table` has the rows of `compiled()` from `first` on.
template <class Arguments>
void launch(const std::vector<Instance<Arguments>>& table, size_t first, Operation operation, CellKind cell,
            ElementKind element, const Arguments& a, const Target& target) {
  const Plan plan = plan_on(target.device, request_of(operation, cell, element, a));
  if (plan.chosen < 0) throw std::invalid_argument(plan.reason);
  const Instance<Arguments>& instance = table[static_cast<size_t>(plan.chosen) - first];
  instance.launch(instance.geometry, plan, a, target);
}

}  // namespace

const std::vector<Geometry>& compiled() {
  static const std::vector<Geometry> all = [] {
    std::vector<Geometry> geometries;
    for (const auto& instance : kernels<ForwardTable>()) geometries.push_back(instance.geometry);
    for (const auto& instance : kernels<BackwardTable>()) geometries.push_back(instance.geometry);
    return geometries;
  }();
  return all;
}

const char* architectures() { return FASTRNN_TEXT(FASTRNN_ARCHITECTURES); }

std::optional<Only> only_way() {
  const char* text = std::getenv("FASTRNN_CUDA_WAY");
  if (text == nullptr || *text == '\0') return {};
  return parse_only(text);
}

Plan plan_on(int device, const Request& request) { return plan(compiled(), request, limits(device), architectures()); }

void launch_forward(CellKind cell, ElementKind element, const ForwardArguments& arguments, const Target& target) {
  launch(kernels<ForwardTable>(), 0, Operation::kForward, cell, element, arguments, target);
}

void launch_backward(CellKind cell, ElementKind element, const BackwardArguments& arguments, const Target& target) {
  launch(kernels<BackwardTable>(), kernels<ForwardTable>().size(), Operation::kBackward, cell, element, arguments,
         target);
}

}  // namespace fastrnn
