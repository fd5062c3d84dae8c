"""The conclusions from each study, written after its results, for docs/studies.md.

``LESSONS`` says them in a few sentences; ``REMARKS`` explains numbers that are worse than the
published ones.
"""

LESSONS = {
    "timesteps": """
Ten timesteps are too few: after the last one x_t still holds 90% of the data's variance, so a chain
that starts from pure noise starts where no point has been, and compact blobs suffer most. From 50
on, for blobs from 100, more timesteps gain nothing, and after the same 100 epochs 500 of them are
worse than 100 on moons and circles.
""",
    "betas": """
What counts is how much of the data the last timestep still holds: with beta up to 0.002 it is 82%
of the variance, and blobs pay for it with twice the EMD. Ten times more noise than usual costs
less, and most where the data is finest, on the thin curve of helix.
""",
    "schedules": """
On data of unit scale all schedules but the cosine one come out alike, near perfect samples. The
last betas of the cosine one reach 0.999 and magnify whatever the network gets wrong there, which
at 50 timesteps shows.
""",
    "epochs": """
A surface is learned in the first hundred epochs, a thousand steps. Twenty times as many take away
half of what is still missing on sin_5_5, and on helix nothing that the metric sees.
""",
    "complexity": """
One hidden layer of 64 units is too stiff for a helix, and a second one brings most of what there is
to gain. From 64, 128, 128 on, larger networks gain little that the metric sees.
""",
    "guidance": """
Guidance buys accuracy with spread: above w = 0.5 the EMD grows with w on every data set, to several
times that of perfect samples. Where classes overlap, as in blobs and manycircles, an accuracy above
that of real points is no merit: it means that the overlap is missing.
""",
    "reward": """
Choosing among candidates by what a classifier makes of their clean ends gives samples of a class
without any training for it. The reward of x0_hat alone drives them to the nearest edge of their
class while there is much noise; valued by draws of the posterior they spread over it, and the EMD
of moons is 27 in place of 99.
""",
    "digits": """
The same network and samplers draw digits of 64 pixels; a model that is told the class draws, with
guidance of w = 0.5, the right one as often as real digits are recognised. There its EMD is least
too, a tenth above that between two halves of the data: more guidance makes digits all alike.
""",
}

REMARKS = {
    "timesteps": """
One EMD is above the published one, that of manycircles at T = 10. There a chain starts where the
network has never been trained, and the outcome hangs on the training's luck and on details of the
published code, such as the variance of its reverse steps. The kernel NLLs of circles and blobs at
T = 200 are 0.02 and 0.01 too high by a measure that knows only the chance of drawing samples, not
that of training another model. The published 0.54 of manycircles is below what perfect samples
score: it belongs to another draw of the data.
""",
    "betas": """
Two EMDs are above the published ones, those of helix where beta ends at 0.2. The published ones of
helix hardly change with beta, 56 to 59; ours are 49 to 51 where beta ends at 0.02 or below, and
higher where it ends at 0.2, as those of the other data sets are. What the published runs did
otherwise is not known; the variance of the reverse steps does not explain it.
""",
    "guidance": """
Published accuracies are those of another classifier. The classes of helix are drawn at random along
it, so that real points are recognised in four cases of five; what a classifier makes of such
labels depends on its kind. At equal accuracy, in the last table, no EMD is above the published one.
""",
    "reward": """
The temperature and the number of candidates of the published numbers are not known, so the last
table is the one to compare: at equal accuracy no EMD is above the published one by more than two
standard deviations. On blobs, one class of which is two clusters far apart, a normal distribution
is a poor likeness of the posterior, and x0_hat alone does better.
""",
}
