"""The conclusions from each study, written after its results, for docs/studies.md.

``LESSONS`` says them in a few sentences; ``REMARKS`` explains numbers that are worse than the
published ones.
"""

LESSONS = {
    "timesteps": """
Ten timesteps are too few. After the last of them x_t still holds 90% of the data's variance, so a
chain that starts from pure noise starts where the network was never trained, and compact blobs
suffer most. From 50 timesteps on (100 for blobs), more of them gain nothing. After the same 100
epochs, 500 timesteps are worse than 100 on moons and circles.
""",
    "betas": """
The share of the data that is left at the last timestep decides the result. With beta up to 0.002 it
is 82% of the variance, and the EMD of blobs doubles. Ten times more noise than usual costs less,
and most where the data is finest, on the thin curve of helix.
""",
    "schedules": """
On data of unit scale all schedules except cosine give about the same result, close to perfect
samples. The last betas of the cosine schedule reach 0.999 and magnify the errors of the network
there, which shows at 50 timesteps.
""",
    "epochs": """
A surface is learned in the first hundred epochs, which are a thousand steps. Twenty times as many
steps halve the remaining error on sin_5_5; on helix they gain nothing that the metric can see.
""",
    "complexity": """
One hidden layer of 64 units is too stiff for a helix. A second layer brings most of the gain, and
beyond 64, 128, 128 larger networks gain little that the metric can see.
""",
    "guidance": """
Guidance trades spread for accuracy. Above w = 0.5 the EMD grows with w on every data set, to
several times that of perfect samples. Where classes overlap, as in blobs and manycircles, an
accuracy above that of real points is no merit: it means that the overlap is missing.
""",
    "reward": """
A choice among candidates, by the class that a classifier sees in their predicted clean points,
gives samples of a class without any training for it. The reward of x0_hat alone drives the samples
to the nearest edge of their class while there is much noise. With values from draws of the
posterior they spread over the class, and the EMD of moons falls from 99 to 27.
""",
    "digits": """
The same network and samplers draw digits of 64 pixels, under EDM's schedule. With guidance of
w = 0.5 a conditional model draws the right digit as often as real digits are recognised. The EMD is
lowest there too, 3% above that between two halves of the data; more guidance makes all digits look
alike. A network of eps under the linear schedule of 200 steps, which leaves an eighth of the data's
variance in x_T, had an EMD a tenth higher.
""",
    "predictions": """
The recipe is that of "our best", the schedule linear where the prediction names no other. EMD and
NLL hardly tell the predictions apart; how sharp the outlines are does. Networks of v, eps and EDM
draw them alike, after a training that is too short for any of them. Flow matching is more blurred:
its schedule reaches far more and far less noise, so that fewer draws fall where outlines are
decided, and fewer still with logit-normal ones. A network that predicts x0 has to reproduce its
input where there is little noise; min-SNR weights bring it closer. Each prediction was trained
once, with one seed.
""",
}

REMARKS = {
    "timesteps": """
One EMD is above the published one, that of manycircles at T = 10. The chain starts there where the
network was never trained, and the result depends on chance in the training and on details of the
published code, such as the variance of its reverse steps. The kernel NLLs of circles and blobs at T
= 200 are 0.02 and 0.01 too high by a test that knows only the chance in drawing samples, not that
in training another model. The published 0.54 of manycircles is below the score of perfect samples:
it belongs to another draw of the data.
""",
    "betas": """
Two EMDs are above the published ones, those of helix where beta ends at 0.2. The published EMDs of
helix hardly change with beta, 56 to 59. Ours are 49 to 51 where beta ends at 0.02 or below, and
higher where it ends at 0.2, as on the other data sets. How the published runs differed is not
known; the variance of the reverse steps does not explain it.
""",
    "guidance": """
The published accuracies come from another classifier. The classes of helix are drawn at random
along the curve, so that real points are recognised in four cases out of five, and different
classifiers treat such labels differently. At equal accuracy, in the last table, no EMD is above the
published one.
""",
    "reward": """
The temperature and the number of candidates behind the published numbers are not known, so the last
table is the fair comparison: at equal accuracy no EMD is above the published one by more than two
standard deviations. One class of blobs is two clusters far apart. There a normal distribution is a
poor model of the posterior, and x0_hat alone does better.
""",
}
