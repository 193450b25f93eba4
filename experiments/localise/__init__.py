"""The study of a pretrained model made localist by calibration: what it keeps, beside a window and other controls."""
