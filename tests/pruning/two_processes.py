"""Run by test_callback once for each rank: writes what each process holds to a folder."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.training_config import PruningTrainingConfig


def main(folder: Path, method: str) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16,
        )
    )  # fmt: skip
    rows = [
        {"input_ids": torch.randint(1, 50, (8,)), "labels": torch.tensor(number % 2)}
        for number in range(32)
    ]
    callback = PruningCallback(
        PruningTrainingConfig.from_dict({"method": method, "sparsity": 0.7, "frequency": 2})
    )
    args = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=10, per_device_train_batch_size=4,
        learning_rate=1e-2, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    # The processes must agree because pruning makes them, not because they see the same rows.
    Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback]).train()
    assert callback.masks is not None
    kept = {f"kept.{name}": mask for name, mask in callback.masks.kept.items()}
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file({**kept, **weights}, folder / f"process{args.process_index}of{args.world_size}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
