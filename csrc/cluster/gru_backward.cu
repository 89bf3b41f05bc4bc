#include "backward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_BACKWARD_INSTANCES(Gru, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::cluster::gru_backward() {
  return {FASTRNN_GRU_BACKWARD_SHAPES(FASTRNN_ROW)};
}
