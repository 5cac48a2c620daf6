"""What a training batch is made of: a pure function of seed and entry."""

import torch

from edgediff.training.draws import draws


def drawn(entries, seed=0, num_images=50):
    return draws(torch.tensor(entries), num_images=num_images, num_train_timesteps=1000, seed=seed)


def test_timesteps_come_in_antithetic_pairs_and_everywhere():
    timestep = drawn(range(4000)).timestep
    assert torch.equal(timestep[0::2] + timestep[1::2], torch.full((2000,), 999))
    # 2,000 uniform draws: each tenth holds 200 +- 13; 5 sigma.
    assert all(abs(int(count) - 200) < 70 for count in torch.histc(timestep[0::2].float(), 10, 0, 999))


def test_an_entry_is_the_same_in_any_batch():
    together, alone = drawn(range(10)), drawn([7])
    assert together.image[7] == alone.image[0] and together.timestep[7] == alone.timestep[0]
    assert torch.equal(together.noise((3,))[7], alone.noise((3,))[0])


def test_entries_and_seeds_differ():
    noise = torch.cat([drawn(range(100), seed=seed).noise((50,)) for seed in (0, 1)])
    correlation = torch.corrcoef(noise) - torch.eye(200)
    # 19,900 pairs of 50 normal numbers: sigma 0.14; beyond 0.75 is 5 sigma.
    assert correlation.abs().max() < 0.75
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05


def test_every_image_is_seen_once_an_epoch():
    image = drawn(range(100)).image
    assert sorted(image[:50].tolist()) == sorted(image[50:].tolist()) == list(range(50))
    assert image[:50].tolist() != image[50:].tolist()
