#include "forward_instances.cuh"

#define FASTRNN_HALF_ROWS(...) FASTRNN_FORWARD_HALF_ROWS(Gru, __VA_ARGS__)
#define FASTRNN_TF32_ROW(...) FASTRNN_FORWARD_TF32_ROW(Gru, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::gru_forward() {
  return {FASTRNN_GRU_FORWARD_SHAPES(FASTRNN_HALF_ROWS) FASTRNN_GRU_FORWARD_TF32_SHAPES(FASTRNN_TF32_ROW)};
}
