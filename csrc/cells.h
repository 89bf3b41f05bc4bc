// Which cells there are: the class in cells.cuh and the name of each. setup.py reads this line, too: it compiles every
// source in cluster/ and grid/ once for each cell, whose class is then FASTRNN_CELL. What takes longest comes first.
// Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited.
#pragma once

#define FASTRNN_CELLS(X) X(Lstm, lstm) X(Gru, gru) X(RnnTanh, rnn_tanh) X(RnnRelu, rnn_relu)
