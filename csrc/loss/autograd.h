// The gradient of forward in the dispatcher: what it keeps, and the call of the op backward. That
// op's own gradient is registered in Python (discloss_cuda/_ops.py).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "discriminative_loss.h"

namespace discloss {

// ForwardFunction as the dispatcher knows it.
using SymbolicForward = ForwardTuple(const at::Tensor&, const at::Tensor&,
                                     const std::optional<at::Tensor>&, c10::SymInt, double, double,
                                     double, double, double, int64_t, at::IntArrayRef, bool);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name_space, const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((name_space + "::" + name).c_str(), "")
      .typed<Signature>();
}

// kNamespace names the library whose ops are meant.
template <const char* kNamespace>
class Autograd : public torch::autograd::Function<Autograd<kNamespace>> {
  using Variables = torch::autograd::variable_list;
  using Context = torch::autograd::AutogradContext;
  using Numbers = std::array<double, 6>;  // delta_var, delta_dist, alpha, beta, gamma, norm

 public:
  // The kernel for the key Autograd.
  static ForwardTuple kernel(const at::Tensor& embeddings, const at::Tensor& labels,
                             const std::optional<at::Tensor>& offsets, c10::SymInt max_instances,
                             double delta_var, double delta_dist, double alpha, double beta,
                             double gamma, int64_t norm, at::IntArrayRef ignore_labels,
                             bool squeeze) {
    TORCH_CHECK_NOT_IMPLEMENTED(!embeddings._fw_grad(0).defined(), kNamespace,
                                "::forward has no forward-mode derivative: call "
                                "discriminative_loss, which has, uncompiled");
    if (!at::GradMode::is_enabled() || !embeddings.requires_grad()) {
      return below_autograd(embeddings, labels, offsets, std::move(max_instances), delta_var,
                            delta_dist, alpha, beta, gamma, norm, ignore_labels, squeeze);
    }
    ForwardTuple results =
        below_autograd(embeddings, labels, offsets, std::move(max_instances), delta_var, delta_dist,
                       alpha, beta, gamma, norm, ignore_labels, squeeze);
    const Numbers numbers = {delta_var, delta_dist, alpha, beta, gamma, static_cast<double>(norm)};
    const Variables terms = Autograd::apply(embeddings, &offsets, &numbers, &results);
    std::get<0>(results) = terms[0];
    std::get<1>(results) = terms[1];
    std::get<2>(results) = terms[2];
    std::get<3>(results) = terms[3];
    return results;
  }

  // Keeps what backward needs and gives loss and terms, which alone have a gradient, to the graph.
  // Only a variable of the graph is an argument by itself: each costs something in every call.
  static Variables forward(Context* context, const at::Tensor& embeddings,
                           const std::optional<at::Tensor>* offsets, const Numbers* numbers,
                           const ForwardTuple* results) {
    const auto& [loss, variance, distance, regularization, slots, instances, counts, means, pull,
                 push] = *results;
    context->set_materialize_grads(false);
    context->save_for_backward(
        {embeddings, offsets->value_or(at::Tensor()), slots, instances, counts, means, pull, push});
    context->saved_data["numbers"] = std::vector<double>(numbers->begin(), numbers->end());
    return {loss, variance, distance, regularization};
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const auto given = [](const at::Tensor& tensor) {
      return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
    };
    const std::array<std::optional<at::Tensor>, 4> of_terms = {
        given(gradients[0]), given(gradients[1]), given(gradients[2]), given(gradients[3])};
    Variables of_inputs(4);  // one for each argument of forward
    if (of_terms[0] || of_terms[1] || of_terms[2] || of_terms[3]) {
      static const auto op = find_op<BackwardFunction>(kNamespace, "backward");
      // First of all: a hook that unpacks a saved tensor may run anything, forward included.
      const Variables saved = context->get_saved_variables();
      // Where no second derivative is asked for, its registration, in Python, need not be called.
      std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
      if (!at::GradMode::is_enabled()) {
        guard.emplace();
      }
      const std::vector<double> numbers = context->saved_data["numbers"].toDoubleVector();
      of_inputs[0] =
          op.call(of_terms[0], of_terms[1], of_terms[2], of_terms[3], saved[0], given(saved[1]),
                  saved[2], saved[3], saved[4], saved[5], saved[6], saved[7], numbers[0],
                  numbers[1], numbers[2], numbers[3], numbers[4], static_cast<int64_t>(numbers[5]));
    }
    return of_inputs;
  }

 private:
  template <typename... Arguments>
  static ForwardTuple below_autograd(Arguments&&... arguments) {
    static const auto op = find_op<SymbolicForward>(kNamespace, "forward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace discloss
