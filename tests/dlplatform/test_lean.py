"""Workers start without torch.compile, and optimizers do what they did."""

from __future__ import annotations

import subprocess
import sys

STEPS = """
import sys, torch
from dlplatform import lean
if {lean}:
    lean.leave_compiler_out()
for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5))
    optimizer = getattr(torch.optim, name)([p], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    print(name, p.grad_fn, p.requires_grad, torch.is_grad_enabled(), p.tolist())
print("loaded" if "torch._dynamo" in sys.modules else "left out", file=sys.stderr)
"""
COMPILED = """
import torch
from dlplatform import lean
lean.leave_compiler_out()
p = torch.nn.Parameter(torch.randn(5))
optimizer = torch.optim.SGD([p], lr=0.1)
loss = torch.compile(lambda: p.square().sum(), backend="eager")
before = float(loss())
for _ in range(3):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
assert float(loss()) < before
"""


def said(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_optimizers_step_as_before_without_the_compiler() -> None:
    usual, lean = said(STEPS.format(lean=False)), said(STEPS.format(lean=True))
    assert usual.stderr.strip() == "loaded"
    assert lean.stderr.strip() == "left out"
    assert lean.stdout == usual.stdout and len(lean.stdout.splitlines()) == 6


def test_what_is_compiled_later_still_is() -> None:
    assert said(COMPILED).returncode == 0


def test_a_script_with_the_two_lines_starts_without_the_compiler_too() -> None:
    model = "model = torch.nn.Linear(2, 1)"
    lines = ["import sys, torch, dlplatform", "dlplatform.init()", model]
    lines += ["optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"]
    lines += ["optimizer = dlplatform.distribute(optimizer, model, rule='asgd')"]
    lines += ["model(torch.ones(1, 2)).sum().backward()", "optimizer.step()"]
    assert said("\n".join([*lines, "print('torch._dynamo' in sys.modules)"])).stdout == "False\n"
