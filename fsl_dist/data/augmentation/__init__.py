"""What training does to images: draws per sample, RandAugment and TrivialAugment, erasing, Mixup and CutMix."""
