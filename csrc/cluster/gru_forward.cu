#include "forward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_FORWARD_INSTANCES(Gru, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::gru_forward() {
  return {FASTRNN_GRU_FORWARD_SHAPES(FASTRNN_ROW)};
}
