// A cell's backward kernels over teams: compiled once for each cell (../cells.h).
#include "../launch.cuh"
#include "backward.cuh"

namespace fastrnn::grid {

template <class Cell, class Element>
void add_one(BackwardTable& table) {
  using P = BackwardShape<Cell, Element>;
  table.push_back(grid_instance<P, BackwardArguments, backward_kernel<P>>(Operation::kBackward));
}

template <class Cell>
void add(BackwardTable& table) {
  add_one<Cell, Bfloat16>(table);
  add_one<Cell, Float16>(table);
  add_one<Cell, Tf32>(table);
}

template void add<FASTRNN_CELL>(BackwardTable&);

}  // namespace fastrnn::grid
