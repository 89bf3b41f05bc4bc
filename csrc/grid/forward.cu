// A cell's forward kernels over teams: compiled once for each cell (../cells.h).
#include "../launch.cuh"
#include "forward.cuh"

namespace fastrnn::grid {

template <class Cell, class Element>
void add_one(ForwardTable& table) {
  using P = ForwardShape<Cell, Element>;
  table.push_back(grid_instance<P, ForwardArguments, forward_kernel<P>>(Operation::kForward));
}

template <class Cell>
void add(ForwardTable& table) {
  add_one<Cell, Bfloat16>(table);
  add_one<Cell, Float16>(table);
  add_one<Cell, Tf32>(table);
}

template void add<FASTRNN_CELL>(ForwardTable&);

}  // namespace fastrnn::grid
