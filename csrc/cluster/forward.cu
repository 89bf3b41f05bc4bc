// A cell's forward kernels over clusters: compiled once for each cell (../cells.h).
#include "../launch.cuh"
#include "forward.cuh"
#include "shapes.cuh"

namespace fastrnn::cluster {

template <class Cell, class Element, int... shape>
void add_one(ForwardTable& table, Shape<shape...>) {
  using P = ForwardShape<Cell, Element, shape...>;
  if constexpr (P::FITS) {
    table.push_back(cluster_instance<P, ForwardArguments, forward_kernel<P>>(Operation::kForward));
  }
}

template <class Cell, class Element, class... Each>
void add_each(ForwardTable& table, Shapes<Each...>) {
  (add_one<Cell, Element>(table, Each()), ...);
}

template <class Cell>
void add(ForwardTable& table) {
  add_each<Cell, Bfloat16>(table, ForwardShapes<Cell, Bfloat16>());
  add_each<Cell, Float16>(table, ForwardShapes<Cell, Float16>());
  add_each<Cell, Tf32>(table, ForwardShapes<Cell, Tf32>());
}

template void add<FASTRNN_CELL>(ForwardTable&);

}  // namespace fastrnn::cluster
