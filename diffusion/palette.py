"""Colours of figures and pages."""

# The palette of Okabe and Ito, which colour-blind readers can tell apart, and three more colours
# for ten classes.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#7B3F00",
    "#222222", "#A6A600",
)  # fmt: skip
INK = "#444444"  # of lines and texts beside the data
FAINT = "#BBBBBB"  # of data behind what is shown
