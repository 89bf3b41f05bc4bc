#include "backward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_BACKWARD_INSTANCES(Lstm, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::cluster::lstm_backward() {
  return {FASTRNN_LSTM_BACKWARD_SHAPES(FASTRNN_ROW)};
}
