"""PointNet++: sampling and grouping by hand, and the network as published."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depoison.models.pointnet2 import ball_query, farthest_points, gather, pointnet2

PUBLISHED = {
    "width": 64, "centers1": 512, "centers2": 128, "radius1": 0.2, "radius2": 0.4, "neighbors1": 32, "neighbors2": 64,
    "dropout": 0.5,
}  # fmt: skip
SMALL = PUBLISHED | {"width": 4, "centers1": 16, "centers2": 8, "neighbors1": 8, "neighbors2": 4}


def test_farthest_points_by_hand():
    """On the line 0, 1, 2, 9, 10: after 0 comes 10, then 2 (2 from 0, 8 from 10); 1 and 9 are 1 away: the first."""
    clouds = torch.zeros(2, 5, 3)
    clouds[0, :, 0] = torch.tensor([0.0, 1.0, 2.0, 9.0, 10.0])
    clouds[1, :, 2] = torch.tensor([5.0, 4.0, 10.0, 6.0, 0.0])
    assert farthest_points(clouds, 5).tolist() == [[0, 4, 2, 1, 3], [0, 2, 4, 1, 3]]
    assert farthest_points(clouds, 2).tolist() == [[0, 4], [0, 2]]


def test_ball_query_by_hand():
    """The first ones in the order of the points, not the nearest ones; the first stands in for those that lack."""
    places = torch.zeros(1, 5, 3)
    places[0, :, 1] = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.05])
    centers = places[:, [0, 3]]
    assert ball_query(places, centers, 0.5, 3).tolist() == [[[0, 1, 2], [1, 3, 1]]]
    assert ball_query(places, centers, 0.2, 4).tolist() == [[[0, 2, 4, 0], [3, 3, 3, 3]]]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.floats(0.05, 2.0))
def test_sampling_and_grouping_as_their_definitions(seed, points, count, radius):
    cloud = np.random.default_rng(seed).normal(size=(points, 3)).astype(np.float32)
    centers = min(points, 7)
    where = farthest_points(torch.from_numpy(cloud)[None], centers)[0].tolist()
    expected = [0]
    while len(expected) < centers:
        expected.append(int(np.argmax([min(((p - cloud[e]) ** 2).sum() for e in expected) for p in cloud])))
    assert where == expected
    groups = ball_query(torch.from_numpy(cloud)[None], torch.from_numpy(cloud[where])[None], radius, count)[0].tolist()
    for center, group in zip(where, groups, strict=True):
        near = [i for i, p in enumerate(cloud) if np.linalg.norm(p - cloud[center]) <= radius]
        assert group == (near[:count] + near[:1] * count)[:count]


def test_widths_and_parameters_are_the_published_ones():
    extractor, classifier = pointnet2(40, 3, **PUBLISHED)
    linear = [(layer.in_features, layer.out_features) for layer in extractor.modules() if isinstance(layer, nn.Linear)]
    assert linear == [
        (3, 64), (64, 64), (64, 128), (131, 128), (128, 128), (128, 256), (259, 256), (256, 512), (512, 1024),
        (1024, 512), (512, 256),
    ]  # fmt: skip
    assert (classifier.in_features, classifier.out_features) == (256, 40)
    assert [layer.p for layer in extractor.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_levels_see_only_relative_places():
    """Where a cloud is moved, the first level's features stay, and its centers move with it."""
    torch.manual_seed(0)
    extractor, _ = pointnet2(3, 3, **SMALL)
    level = extractor.eval()[1]
    cloud = torch.rand(2, 40, 3)
    centers, features = level((cloud, None))
    moved_centers, moved = level((cloud + 3, None))
    assert torch.allclose(moved, features, atol=1e-5)
    assert torch.allclose(moved_centers, centers + 3)


def test_the_answer_to_a_cloud_is_one_and_gradients_reach_every_weight():
    torch.manual_seed(0)
    extractor, classifier = pointnet2(3, 3, **SMALL)
    clouds = torch.rand(6, 40, 3)
    network = nn.Sequential(extractor, classifier)
    network(clouds).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "weight" in n)
    network.eval()
    alone = torch.cat([network(cloud[None]) for cloud in clouds])
    assert torch.allclose(network(clouds), alone, atol=1e-5)


def test_gather_takes_from_each_cloud_its_own():
    points = torch.arange(12.0).view(2, 3, 2)
    assert gather(points, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
