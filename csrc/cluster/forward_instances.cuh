// The rows of the table for one cell's forward: its shapes in both 16-bit dtypes, and those in TF32.
#pragma once

#include "../cells.cuh"
#include "../elements.cuh"
#include "../launch.cuh"
#include "forward.cuh"
#include "shapes.h"

namespace fastrnn::cluster {

template <class Cell, class Element, int... shape>
Instance<ForwardArguments> forward_instance() {
  using Shape = ForwardShape<Cell, Element, shape...>;
  return cluster_instance<Shape, ForwardArguments, forward_kernel<Shape>>(Operation::kForward);
}

}  // namespace fastrnn::cluster

#define FASTRNN_FORWARD_HALF_ROWS(Cell, ...) \
  forward_instance<Cell, Bfloat16, __VA_ARGS__>(), forward_instance<Cell, Float16, __VA_ARGS__>(),
#define FASTRNN_FORWARD_TF32_ROW(Cell, ...) forward_instance<Cell, Tf32, __VA_ARGS__>(),
