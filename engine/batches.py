"""Batches of a dataset: halves, shares of classes, augmentation of whole batches."""
import copy
import functools

import torch
import torch.nn.functional as F

from engine import processes
from engine.flags import UserError
from engine.pictures import Files
from engine.recipes import recipe


def generator(seed, stream=0):
    """A seeded generator; `stream` tells apart the independent uses of one seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


def balanced(labels, first, second, seed):
    """Two index tensors of the shares `first` and `second` of each class, in random
    order."""
    g, parts = generator(seed, 1), ([], [])
    for label in range(int(labels.max()) + 1):
        of_class = (labels == label).nonzero().flatten()
        order = of_class[torch.randperm(len(of_class), generator=g)]
        if len(order) < 2:
            raise UserError("a class has one picture, too few for --train_fraction and "
                            "--valid_fraction")
        counts = [max(1, int(share * len(order))) for share in (first, second)]
        for part, chosen in zip(parts, order.split([*counts, len(order) - sum(counts)])):
            part.append(chosen)
    parts = [torch.cat(part) for part in parts]  # by classes: batches of it would have one each
    return [part[torch.randperm(len(part), generator=g)] for part in parts]


def parts(s, labels):
    """Two index tensors, by a search's settings `s`: for the weights, and for alpha.
    Raises UserError."""
    first, second = s.train_fraction, s.valid_fraction
    if first or second:
        if not first or not second or first + second > 1:
            raise UserError(f"--train_fraction {first} and --valid_fraction {second}: both must "
                            "be above 0, together 1 at most")
        return balanced(labels, first, second, s.seed)
    order = torch.randperm(len(labels), generator=generator(s.seed, 1))
    count = int(s.train_portion * len(labels))
    return order[:count], order[count:]


def halves(run):
    """The training set of a search in two: endless batches for the weights, and for
    alpha."""
    s, whole = run.s, Pictures(run.dataset, run.device)
    augmentation, (first, second) = recipe(run.dataset), parts(s, run.dataset.labels)
    if s.single_level:  # there, weights and alpha have all of them
        first = torch.cat([first, second])
    for stream, half in enumerate((first, second), 2):
        yield Batches(whole.part(half.to(run.device)), s.batch_size, augmentation.padding,
                      augmentation.flip, 0, generator(s.seed, stream))


def training_set(run):
    """Endless batches of all training pictures, and the Pictures of the test set."""
    s, augmentation = run.s, recipe(run.dataset)
    batches = Batches(Pictures(run.dataset, run.device), s.batch_size * s.accumulate,
                      augmentation.padding, augmentation.flip,
                      s.cutout_length if s.cutout else 0, generator(s.seed, 2))
    return batches, Pictures(run.dataset, run.device, test=True)


def check_batch(batch_size, count, accumulate=1):
    """Raises UserError if `accumulate` batches are more than the pictures, `count`, or
    a batch is not a multiple of the number of processes."""
    if batch_size % processes.size() or batch_size < 2 * processes.size():
        raise UserError(f"--batch_size {batch_size} is that of all {processes.size()} processes: "
                        f"give a multiple of {processes.size()}, {2 * processes.size()} or more")
    if count < 2:
        raise UserError(f"there are {count} pictures to draw batches from: at least 2 are needed")
    most = count // accumulate
    if batch_size > most:
        times = f" times --accumulate {accumulate}" * (accumulate > 1)
        advice = f"give --batch_size {most} or less" if most > 1 else "lower --accumulate"
        raise UserError(f"--batch_size {batch_size}{times} is larger than the {count} pictures it "
                        f"is drawn from: {advice}")


def random_crop_flip(images, chosen, padding, flip):
    """Each picture padded with black and cropped, and if `flip` perhaps mirrored:
    chosen, (B,), says which of all such pictures it is. (B, C, H, W) -> (B, C, H, W)"""
    crops = _crops(*images.shape[2:], padding, flip, images.device)
    pixels = crops.index_select(0, chosen)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H * W)
    return F.pad(images, [padding] * 4).flatten(2).gather(2, pixels).view(images.shape)


@functools.lru_cache
def _crops(height, width, padding, flip, device):
    """Every possible crop, as the places of its pixels in the padded picture.

    -> (crops, H * W)
    """
    rows, columns = height + 2 * padding, width + 2 * padding
    places = torch.arange(rows * columns, device=device).view(rows, columns)
    crops = places.unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
    return torch.cat([crops, crops.flip(2)] if flip else [crops]).flatten(1)


def cutout(images, y, x, length):
    """Sets a square of `length` pixels around row y and column x, (B,), of each picture
    to 0, in place (DeVries & Taylor, 2017)."""
    def around(centre, size):  # (B, size)
        distance = torch.arange(size, device=images.device) - centre[:, None] + length // 2
        return (distance >= 0) & (distance < length)

    rows, columns = around(y, images.shape[2]), around(x, images.shape[3])
    return images.mul_(~(rows[:, :, None] & columns[:, None])[:, None])


class Pictures:
    """A dataset's training or test pictures, on a device, with the mean and the
    deviation of training pictures."""

    def __init__(self, dataset, device, test=False):
        self.images = (dataset.test_images if test else dataset.images).to(device)
        self.labels = (dataset.test_labels if test else dataset.labels).to(device)
        self.mean, self.std = dataset.mean.to(device), dataset.std.to(device)

    def part(self, indices):
        """Those of the indices."""
        some = copy.copy(self)
        some.images, some.labels = self.images[indices], self.labels[indices]
        return some

    def read(self, parts, random=False):
        """The pictures of each part, rows that begin with a picture's index."""
        if isinstance(self.images, Files):
            return self.images.read([part.cpu() for part in parts], random)
        return (self.images.index_select(0, part[:, 0]) for part in list(parts))

    def normalize(self, images):
        """uint8 (B, C, H, W) -> float32 of mean 0 and deviation 1 in each channel."""
        return images.float().sub_(self.mean[:, None, None]).div_(self.std[:, None, None])

    def in_order(self, batch_size=256):
        """All pictures once, as they are, in batches of (images, labels). Of several
        processes, each gets its share of the batches."""
        indices = torch.arange(len(self.labels), device=self.labels.device)[:, None]
        parts = indices.split(batch_size)[processes.rank()::processes.size()]
        for images, part in zip(self.read(parts), parts):
            yield self.normalize(images), self.labels.index_select(0, part[:, 0])


class Batches:
    """An endless stream of augmented batches; len: batches in a pass over the pictures.

    Every pass has a new random order, and leaves out the remainder that fills no batch.
    All its random numbers are drawn at its start, so that none has to travel in a step.
    Of several processes, each gets its part of every batch. state_dict holds the
    generator's state before the pass and the position in it: a stream that loads it
    continues exactly there.
    """

    def __init__(self, pictures, batch_size, padding, flip, cutout_length, generator):
        check_batch(batch_size, len(pictures.labels))
        self.pictures, self.batch_size, self.generator = pictures, batch_size, generator
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.before, self.position, self.parts = generator.get_state(), 0, []
        self.ahead, self.plan = iter(()), None

    def __len__(self):
        return len(self.pictures.labels) // self.batch_size

    def begin_pass(self, position=0):
        self.before, self.position = self.generator.get_state(), position
        count, _, height, width = self.pictures.images.shape
        crops = (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)
        draws = [torch.randint(high, (count,), generator=self.generator)
                 for high in (crops, height, width, 2 ** 62)]
        order = torch.randperm(count, generator=self.generator)
        self.plan = torch.stack([order, *draws], 1).to(self.pictures.labels.device)  # (N, 5)
        self.close()
        self.parts = [processes.local_part(part)
                      for part in self.plan[position:].split(self.batch_size)
                      if len(part) == self.batch_size]
        self.ahead = self.pictures.read(self.parts, random=True)

    def next(self):
        """-> images (B, C, H, W) float32, labels (B,)"""
        if not self.parts:
            self.begin_pass()
        self.position += self.batch_size
        return self.augmented(next(self.ahead), self.parts.pop(0))

    def last(self):
        """The batch, of all processes, that `next` gave last."""
        part = self.plan[self.position - self.batch_size:self.position]
        return self.augmented(next(iter(self.pictures.read([part], random=True))), part)

    def augmented(self, images, part):
        chosen, crops, y, x, _ = part.unbind(1)
        images = random_crop_flip(images, crops, self.padding, self.flip)
        images = self.pictures.normalize(images)
        if self.cutout_length:
            images = cutout(images, y, x, self.cutout_length)
        return images, self.pictures.labels.index_select(0, chosen)

    def close(self):
        """End the processes that read ahead."""
        if hasattr(self.ahead, "close"):
            self.ahead.close()

    def state_dict(self):
        return {"generator": self.before, "position": self.position}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.begin_pass(state["position"])
