// The interpolated vote on a label.
#pragma once

#include "math/config.h"

namespace nr {

// The label with the largest sum of weights, the smallest of several.
template <class Label, int N>
NR_HD inline Label vote(const Label (&label)[N], const double (&weight)[N]) {
    Label best = label[0];
    double most = -1;
    for (int j = 0; j < N; ++j) {
        double sum = 0;
        for (int other = 0; other < N; ++other) sum += label[other] == label[j] ? weight[other] : 0.0;
        if (sum > most || (sum == most && label[j] < best)) {
            best = label[j];
            most = sum;
        }
    }
    return best;
}

}  // namespace nr
