"""What each study taught, in two sentences; written after its results, for docs/studies.md."""

LESSONS = {
    "timesteps": """
Ten timesteps are too few: after the last one x_t still holds 90% of the data's variance, so a chain
that starts from pure noise starts where no point has been, and compact blobs suffer most. From 50
on more timesteps gain little, and each of them costs time.
""",
    "betas": """
What counts is how much of the data the last timestep still holds: with beta up to 0.002 it is 82%
of the variance, and blobs pay for it. Ten times more noise than usual does less harm, for the end
of such a chain is pure noise too.
""",
    "schedules": """
On data of unit scale all schedules but the cosine one come out alike; its last betas reach 0.999
and blow up whatever the network gets wrong there. In the short form, with a tenth of the training,
its samples of sin_5_5 fly apart, while those of the others are near the floor.
""",
    "epochs": """
A surface is learned in the first few hundred steps, and the rest of the way to perfect samples is
slow. The short form trains 5, 25, 50 and 100 epochs in place of 100 to 2,000, and from 50 on the
metric sees no more gain.
""",
    "complexity": """
One hidden layer of 64 units is too stiff for a helix; a second one brings most of what there is to
gain, and 64, 128, 128 comes near perfect samples. All of them, after the 50 epochs of the short
form, lie below what was published for 100.
""",
    "guidance": """
Guidance buys accuracy with spread: above w = 0.5 the EMD grows with w on every data set, to several
times that of perfect samples. Where classes overlap, as in blobs and manycircles, an accuracy above
that of real points is no merit: it means that the overlap is missing.
""",
    "reward": """
Choosing among candidates by what a classifier says of the expected end of the chain makes samples
that it believes, without any training for it. It is no way to p(x | class): while there is much
noise that expectation lies between the classes, samples are driven to the nearest edge of theirs,
and their EMD is several times that of perfect ones.
""",
    "digits": """
The same network and samplers draw digits of 64 pixels; a model that is told the class draws, with
guidance of w = 1, the right one as often as real digits are recognised. The EMD stays above that
between two halves of the data: samples are not yet as crisp.
""",
}
