#include "backward_instances.cuh"

#define FASTRNN_HALF_ROWS(...) FASTRNN_BACKWARD_HALF_ROWS(Lstm, __VA_ARGS__)
#define FASTRNN_TF32_ROW(...) FASTRNN_BACKWARD_TF32_ROW(Lstm, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::cluster::lstm_backward() {
  return {FASTRNN_LSTM_BACKWARD_SHAPES(FASTRNN_HALF_ROWS) FASTRNN_LSTM_BACKWARD_TF32_SHAPES(FASTRNN_TF32_ROW)};
}
