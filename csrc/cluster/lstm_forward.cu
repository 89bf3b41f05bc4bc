#include "forward_instances.cuh"

#define FASTRNN_HALF_ROWS(...) FASTRNN_FORWARD_HALF_ROWS(Lstm, __VA_ARGS__)
#define FASTRNN_TF32_ROW(...) FASTRNN_FORWARD_TF32_ROW(Lstm, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::lstm_forward() {
  return {FASTRNN_LSTM_FORWARD_SHAPES(FASTRNN_HALF_ROWS) FASTRNN_LSTM_FORWARD_TF32_SHAPES(FASTRNN_TF32_ROW)};
}
