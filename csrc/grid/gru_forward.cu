#include "forward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::grid::gru_forward() {
  return forward_instances<Gru, FASTRNN_GRU_FORWARD_SHAPE>();
}
