// The rows of the table for one cell's backward: its shapes in both 16-bit dtypes, and those in TF32.
#pragma once

#include "../cells.cuh"
#include "../elements.cuh"
#include "../launch.cuh"
#include "backward.cuh"
#include "shapes.h"

namespace fastrnn::cluster {

template <class Cell, class Element, int... shape>
Instance<BackwardArguments> backward_instance() {
  using Shape = BackwardShape<Cell, Element, shape...>;
  return cluster_instance<Shape, BackwardArguments, backward_kernel<Shape>>(Operation::kBackward);
}

}  // namespace fastrnn::cluster

#define FASTRNN_BACKWARD_HALF_ROWS(Cell, ...) \
  backward_instance<Cell, Bfloat16, __VA_ARGS__>(), backward_instance<Cell, Float16, __VA_ARGS__>(),
#define FASTRNN_BACKWARD_TF32_ROW(Cell, ...) backward_instance<Cell, Tf32, __VA_ARGS__>(),
