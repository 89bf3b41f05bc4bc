// The rows of the table for one cell's backward: its shape in every dtype.
#pragma once

#include "../launch.cuh"
#include "backward.cuh"
#include "shapes.h"

namespace fastrnn::grid {

template <class Cell, class Element, int... shape>
Instance<BackwardArguments> backward_instance() {
  using Shape = BackwardShape<Cell, Element, shape...>;
  return grid_instance<Shape, BackwardArguments, backward_kernel<Shape>>(Operation::kBackward);
}

template <class Cell, int... shape>
std::vector<Instance<BackwardArguments>> backward_instances() {
  return {backward_instance<Cell, Bfloat16, shape...>(), backward_instance<Cell, Float16, shape...>(),
          backward_instance<Cell, Tf32, shape...>()};
}

}  // namespace fastrnn::grid
