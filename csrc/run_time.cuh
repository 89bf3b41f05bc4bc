// The kernels of a cell that is compiled while a program runs (fastrnn/backends/cuda/run_time.py): their geometries as
// data, and their shapes by number. The order is that of the extension's table: clusters, then the team's. Shapes that
// do not fit keep their numbers: the planner takes none whose shared memory no device has.
#pragma once

#include "cluster/backward_shape.cuh"
#include "cluster/forward_shape.cuh"
#include "cluster/shapes.cuh"
#include "geometry.h"
#include "grid/shape.cuh"

namespace fastrnn::run_time {

template <int i, class First, class... Rest>
constexpr DEVICE auto nth(cluster::Shapes<First, Rest...>) {
  if constexpr (i == 0) {
    return First();
  } else {
    return nth<i - 1>(cluster::Shapes<Rest...>());
  }
}

template <class Cell, class Element, int... numbers>
DEVICE cluster::ForwardShape<Cell, Element, numbers...> forward(cluster::Shape<numbers...>);
template <class Cell, class Element, int... numbers>
DEVICE cluster::BackwardShape<Cell, Element, numbers...> backward(cluster::Shape<numbers...>);

// The shape of the i-th cluster kernel.
template <class Cell, class Element, int i>
using ForwardShape = decltype(forward<Cell, Element>(nth<i>(cluster::ForwardShapes<Cell, Element>())));
template <class Cell, class Element, int i>
using BackwardShape = decltype(backward<Cell, Element>(nth<i>(cluster::BackwardShapes<Cell, Element>())));

template <int count>
struct Table {
  Geometry rows[count];
};

template <class Cell, class Element, class... Each>
constexpr DEVICE Table<sizeof...(Each) + 1> forward_table(cluster::Shapes<Each...>) {
  return {{cluster_geometry<decltype(forward<Cell, Element>(Each()))>(Operation::kForward)...,
           grid_geometry<grid::ForwardShape<Cell, Element>>(Operation::kForward)}};
}

template <class Cell, class Element, class... Each>
constexpr DEVICE Table<sizeof...(Each) + 1> backward_table(cluster::Shapes<Each...>) {
  return {{cluster_geometry<decltype(backward<Cell, Element>(Each()))>(Operation::kBackward)...,
           grid_geometry<grid::BackwardShape<Cell, Element>>(Operation::kBackward)}};
}

}  // namespace fastrnn::run_time

// Defines an array of the cell's geometries for each operation and element, which are read from the compiled code.
#define FASTRNN_TABLES(Cell, Element, element)                                                           \
  extern "C" __constant__ const auto forward_##element =                                                 \
      fastrnn::run_time::forward_table<Cell, Element>(fastrnn::cluster::ForwardShapes<Cell, Element>()); \
  extern "C" __constant__ const auto backward_##element =                                                \
      fastrnn::run_time::backward_table<Cell, Element>(fastrnn::cluster::BackwardShapes<Cell, Element>());
