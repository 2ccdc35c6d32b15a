// One step of Adam (Kingma and Ba, 2015), with the running maximum of AMSGrad (Reddi et al., 2018) on
// request.
#pragma once

#include <cmath>

#include "math/config.h"

namespace nr {

template <class T>
struct AdamRule {
    T first, second;  // 1 - beta1, 1 - beta2
    T keep;           // beta2
    T rate;           // learning rate / (1 - beta1^t)
    T root;           // sqrt(1 - beta2^t)
    T eps;

    NR_HD AdamRule(double lr, double beta1, double beta2, double eps, double t)
        : first(static_cast<T>(1 - beta1)),
          second(static_cast<T>(1 - beta2)),
          keep(static_cast<T>(beta2)),
          rate(static_cast<T>(lr / (1 - std::pow(beta1, t)))),
          root(static_cast<T>(std::sqrt(1 - std::pow(beta2, t)))),
          eps(static_cast<T>(eps)) {}
};

// What is subtracted from the parameter; brings mean, square and, with amsgrad, largest up to date. NaN
// stays.
template <bool amsgrad, class T>
NR_HD NR_INLINE T adam_step(const AdamRule<T>& rule, T gradient, T& mean, T& square, T& largest) {
    mean += rule.first * (gradient - mean);
    square = rule.keep * square + rule.second * gradient * gradient;
    if (amsgrad) largest = largest >= square ? largest : square;
    const T size = std::sqrt(amsgrad ? largest : square);
    return rule.rate * mean / (size / rule.root + rule.eps);
}

}  // namespace nr
