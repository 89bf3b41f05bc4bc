// A cell's backward kernels over clusters: compiled once for each cell (../cells.h).
#include "../launch.cuh"
#include "backward.cuh"
#include "shapes.cuh"

namespace fastrnn::cluster {

template <class Cell, class Element, int... shape>
void add_one(BackwardTable& table, Shape<shape...>) {
  using P = BackwardShape<Cell, Element, shape...>;
  if constexpr (P::FITS) {
    table.push_back(cluster_instance<P, BackwardArguments, backward_kernel<P>>(Operation::kBackward));
  }
}

template <class Cell, class Element, class... Each>
void add_each(BackwardTable& table, Shapes<Each...>) {
  (add_one<Cell, Element>(table, Each()), ...);
}

template <class Cell>
void add(BackwardTable& table) {
  add_each<Cell, Bfloat16>(table, BackwardShapes<Cell, Bfloat16>());
  add_each<Cell, Float16>(table, BackwardShapes<Cell, Float16>());
  add_each<Cell, Tf32>(table, BackwardShapes<Cell, Tf32>());
}

template void add<FASTRNN_CELL>(BackwardTable&);

}  // namespace fastrnn::cluster
