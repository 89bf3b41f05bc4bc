// Runs the grid kernels on the CPU over many schedules, for sanitizers and planted faults: see check.h.
// FASTRNN_CHECK_FORWARD and FASTRNN_CHECK_BACKWARD, of which a build may define one alone, say what is compiled.
#include "check.h"
#include "launch.cuh"
#include "planner.cpp"
#ifdef FASTRNN_CHECK_FORWARD
#include "grid/forward.cuh"
#endif
#ifdef FASTRNN_CHECK_BACKWARD
#include "grid/backward.cuh"
#endif

namespace fastrnn {
namespace {

constexpr int kBlockUnits = 16;
constexpr int kRegisterTiles = 4;  // fewer than a slice has, so that shared memory has weights too
constexpr int kSharedMemory = 227 << 10;

// Plans and launches `instance` as on a device of so many multiprocessors.
template <class Arguments>
void launch(const Instance<Arguments>& instance, int multiprocessors, const Arguments& a, unsigned seed) {
  setenv("FASTRNN_HOST_SEED", std::to_string(seed).c_str(), 1);
  const Geometry& one = instance.geometry;
  const Request request{one.operation, one.cell, one.element, a.H / a.heads, a.B, a.heads, a.directions, std::nullopt};
  const Plan found = plan({one}, request, {8, 0, multiprocessors, kSharedMemory, 0}, "80");
  if (found.chosen < 0) throw std::invalid_argument(found.reason);
  instance.launch(one, found, a, {});
}

#ifdef FASTRNN_CHECK_FORWARD
template <class Cell, class Element>
bool forward_grid(const std::string& name, const Case& one, int multiprocessors, int schedules) {
  using Shape = grid::ForwardShape<Cell, Element, kBlockUnits, kRegisterTiles>;
  const auto instance = grid_instance<Shape, ForwardArguments, grid::forward_kernel<Shape>>(Operation::kForward);
  return forward<Cell, Element>(name + " forward", one, schedules, [&](const ForwardArguments& a, unsigned seed) {
    launch(instance, multiprocessors, a, seed);
  });
}
#endif

#ifdef FASTRNN_CHECK_BACKWARD
template <class Cell, class Element>
bool backward_grid(const std::string& name, const Case& one, int multiprocessors, bool are_preactivations,
                   int schedules) {
  using Shape = grid::BackwardShape<Cell, Element, kBlockUnits, kRegisterTiles>;
  const auto instance = grid_instance<Shape, BackwardArguments, grid::backward_kernel<Shape>>(Operation::kBackward);
  return backward<Cell, Element>(
      name + " backward", one, are_preactivations, schedules,
      [&](const BackwardArguments& a, unsigned seed) { launch(instance, multiprocessors, a, seed); });
}
#endif

// Of every cell: two teams with two heads and directions and several tiles of the batch each, where rows are not of
// whole vectors, with all masks; and one team of three blocks, without.
constexpr Case kMasked{4, 9, 69, 2, 2, false, true}, kFull{9, 3, 48, 1, 1, true, false};
constexpr int kTwoTeams = 10, kOneTeam = 3;  // multiprocessors

template <class Cell, class Element>
bool check(const std::string& name, int schedules) {
  bool good = true;
#ifdef FASTRNN_CHECK_FORWARD
  good &= forward_grid<Cell, Element>(name + " masked", kMasked, kTwoTeams, schedules);
  good &= forward_grid<Cell, Element>(name + " full", kFull, kOneTeam, schedules);
#endif
#ifdef FASTRNN_CHECK_BACKWARD
  good &= backward_grid<Cell, Element>(name + " masked", kMasked, kTwoTeams, false, schedules);
  good &= backward_grid<Cell, Element>(name + " full", kFull, kOneTeam, Cell::SAVED > 0, schedules);
#endif
  return good;
}

bool check_all(int schedules) {
  bool good = check<Lstm, Bfloat16>("lstm", schedules);
#ifndef FASTRNN_CHECK_LSTM_ALONE
  good &= check<Lstm, Tf32>("lstm tf32", schedules);
  good &= check<Gru, Float16>("gru", schedules);
  good &= check<RnnTanh, Bfloat16>("rnn_tanh", schedules);
#endif
  return good;
}

}  // namespace
}  // namespace fastrnn

int main(int count, char** values) { return fastrnn::run(count, values, fastrnn::check_all); }
