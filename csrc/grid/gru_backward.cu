#include "backward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::gru_backward() {
  return backward_instances<Gru, FASTRNN_GRU_BACKWARD_SHAPE>();
}
