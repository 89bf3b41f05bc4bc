// Runs the cluster kernels on the CPU over many schedules, for sanitizers and planted faults: see check.h.
// FASTRNN_CHECK_FORWARD and FASTRNN_CHECK_BACKWARD, of which a build may define one alone, say what is compiled.
#include "check.h"
#ifdef FASTRNN_CHECK_FORWARD
#include "cluster/forward.cuh"
#endif
#ifdef FASTRNN_CHECK_BACKWARD
#include "cluster/backward.cuh"
#endif

namespace fastrnn {
namespace {

template <class Shape, class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, unsigned seed) {
  const int clusters = (a.B + Shape::ROWS - 1) / Shape::ROWS * a.heads * a.directions;
  host::launch(clusters, Shape::BLOCKS, Shape::THREADS, Shape::SHARED_BYTES, [&] { kernel(a); }, seed);
}

#ifdef FASTRNN_CHECK_FORWARD
template <class Shape>
bool forward_clusters(const std::string& name, const Case& one, int schedules) {
  return forward<typename Shape::Cell, typename Shape::Element>(
      name, one, schedules,
      [](const ForwardArguments& a, unsigned seed) { launch<Shape>(cluster::forward_kernel<Shape>, a, seed); });
}
#endif

#ifdef FASTRNN_CHECK_BACKWARD
template <class Shape>
bool backward_clusters(const std::string& name, const Case& one, bool are_preactivations, int schedules) {
  return backward<typename Shape::Cell, typename Shape::Element>(
      name, one, are_preactivations, schedules,
      [](const BackwardArguments& a, unsigned seed) { launch<Shape>(cluster::backward_kernel<Shape>, a, seed); });
}
#endif

// Of every cell: a cluster whose units are not all used, with all masks, and one that is full, without; and one block.
constexpr Case kMasked{7, 9, 100, 1, 2, false, true}, kFull{9, 3, 128, 1, 1, true, false},
    kHeads{5, 9, 33, 2, 1, false, true};

template <class Cell, class Element>
bool check(const std::string& name, int schedules) {
  bool good = true;
#ifdef FASTRNN_CHECK_FORWARD
  using Cluster = cluster::ForwardShape<Cell, Element, FASTRNN_CHECK_FORWARD>;
  using Block = cluster::ForwardShape<Cell, Element, 64, 1, 4, 1>;
  good &= forward_clusters<Cluster>(name + " forward masked", kMasked, schedules);
  good &= forward_clusters<Cluster>(name + " forward full", kFull, schedules);
  good &= forward_clusters<Block>(name + " forward heads", kHeads, schedules);
#endif
#ifdef FASTRNN_CHECK_BACKWARD
  using BackwardCluster = cluster::BackwardShape<Cell, Element, FASTRNN_CHECK_BACKWARD>;
  using BackwardBlock = cluster::BackwardShape<Cell, Element, 64, 1, 4, 1>;
  good &= backward_clusters<BackwardCluster>(name + " backward masked", kMasked, false, schedules);
  good &= backward_clusters<BackwardCluster>(name + " backward full", kFull, Cell::SAVED > 0, schedules);
  good &= backward_clusters<BackwardBlock>(name + " backward heads", kHeads, false, schedules);
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
