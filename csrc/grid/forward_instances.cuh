// The rows of the table for one cell's forward: its shape in every dtype.
#pragma once

#include "../launch.cuh"
#include "forward.cuh"
#include "shapes.h"

namespace fastrnn::grid {

template <class Cell, class Element, int... shape>
Instance<ForwardArguments> forward_instance() {
  using Shape = ForwardShape<Cell, Element, shape...>;
  return grid_instance<Shape, ForwardArguments, forward_kernel<Shape>>(Operation::kForward);
}

template <class Cell, int... shape>
std::vector<Instance<ForwardArguments>> forward_instances() {
  return {forward_instance<Cell, Bfloat16, shape...>(), forward_instance<Cell, Float16, shape...>(),
          forward_instance<Cell, Tf32, shape...>()};
}

}  // namespace fastrnn::grid
