"""Proposals find planted divisions; placebos have their size and no information."""

import jax
import numpy as np
import pytest

from localist_jax.recruitment import proposals as p
from localist_jax.recruitment.proposals import Concept, Survey

D, N = 12, 1200


def planted(seed=0, strength=1.0, block=1, stretch=1, excess=3.0):
    """States in two clusters inside one block; the smaller one is badly coded, and its slopes share a mean.

    Which cluster a position is in is drawn anew every `stretch` positions.
    """
    rng = np.random.default_rng(seed)
    small = np.repeat(rng.random(-(-N // stretch)) < 0.3, stretch)[:N]
    states = rng.normal(size=(N, D)) + 2.5 * np.where(small[:, None], 1, -1) * np.eye(D)[0]
    slopes = rng.normal(size=(N, D)) + strength * np.where(small[:, None], 0.7, -0.3) * np.eye(D)[3]
    token = np.where(small, rng.integers(5, 8, N), rng.integers(8, 20, N))
    found = Survey(
        states.astype(np.float32),
        slopes.astype(np.float32),
        np.full(N, block),
        token,
        rng.exponential(size=N) + excess * small,
        around(states).astype(np.float32),
    )
    return found, small


def around(states):
    kernel = np.ones(2 * p.NEARBY + 1)
    count = np.convolve(np.ones(len(states)), kernel, "same")
    return np.stack([np.convolve(x, kernel, "same") / count for x in states.T], 1)


def best(found, **options):
    return p.proposals(found, [True] * 3, **options)


def test_the_planted_division_is_found_and_ranked_first():
    found, small = planted()
    first = best(found)[0]
    taken = found.states @ first.direction > p.RESERVE
    assert max((taken == small).mean(), (taken != small).mean()) > 0.95
    assert first.gain_bits > 20
    assert first.parent == 1
    assert first.share == pytest.approx(taken[N // 2 :].mean())
    assert first.positions == N // 2
    assert [q.gain_bits for q in best(found)] == sorted((q.gain_bits for q in best(found)), reverse=True)


def test_what_outlasts_a_word_is_found_though_it_is_coded_as_well_as_the_rest():
    found, small = planted(stretch=40, excess=0.0)
    first = best(found)[0]
    taken = found.states @ first.direction > p.RESERVE
    assert first.kind == "slow"
    assert max((taken == small).mean(), (taken != small).mean()) > 0.95
    hard = [q for q in best(found) if q.kind == "hard"]
    assert all(q.gain_bits < 0.5 * first.gain_bits for q in hard)


def test_where_nothing_is_to_be_found_the_gain_is_about_nothing():
    gains = []
    for seed in range(20):
        found, _ = planted(seed, strength=0.0)
        sides = np.random.default_rng(seed).random(N) < 0.4
        gains.append(p.gain_bits(found.slopes, sides))
    assert abs(np.mean(gains)) < 3
    found, small = planted()
    assert p.gain_bits(found.slopes, small) > 10 * np.std(gains)


def test_the_estimate_is_what_a_newton_step_saves():
    """On a quadratic code length: ½ gᵀF⁻¹g of each side, computed by hand."""
    found, small = planted(strength=1.0)
    one, other = found.slopes[small], found.slopes[~small]
    by_hand = sum(0.5 * x.sum(0) @ np.linalg.inv(x.T @ x) @ x.sum(0) for x in (one, other))
    by_hand -= 0.5 * found.slopes.sum(0) @ np.linalg.inv(found.slopes.T @ found.slopes) @ found.slopes.sum(0)
    assert p.gain_bits(found.slopes, small) == pytest.approx((by_hand - D / 2) / np.log(2), rel=0.02)


def test_a_named_concept_divides_by_its_anchors():
    found, small = planted()
    concept = Concept("fish", {5: 20.0, 6: 20.0, 7: 20.0})
    mine = [q for q in best(found, concepts=[concept]) if q.kind == "concept"]
    assert [q.name for q in mine] == ["fish"]
    assert not mine[0].direction.any()
    assert mine[0].share == pytest.approx(small[N // 2 :].mean())
    assert best(found, concepts=[Concept("absent", {59: 20.0})])[0].kind != "concept"


def test_a_placebo_is_as_large_and_knows_nothing_of_the_proposal():
    found, small = planted()
    proposal = best(found)[0]
    shares = []
    for direction in p.placebos(found, proposal, np.random.default_rng(1), 10):
        taken = found.states @ direction > p.RESERVE
        shares.append([taken[small].mean(), taken[~small].mean()])
        assert taken.mean() == pytest.approx(proposal.share, abs=0.05)
    one, other = np.mean(shares, 0)
    assert one == pytest.approx(other, abs=0.1), "it takes as many on either side of the division"


def worth(found, **options):
    rng = np.random.default_rng(2)
    return [q for q in best(found, **options) if p.worth_a_trial(found, q, p.placebos(found, q, rng, 16))]


def test_only_what_stands_out_from_its_placebos_or_was_asked_for_is_worth_a_trial():
    found, _ = planted()
    first = worth(found)[0]
    fresh, _ = planted(seed=9)
    estimate, *random = p.estimates(fresh, first, p.placebos(found, first, np.random.default_rng(3), 16))
    assert estimate > max(random), "on another survey too"
    nothing, _ = planted(strength=0.0)
    assert worth(nothing) == []
    concept = Concept("fish", {5: 20.0, 6: 20.0, 7: 20.0})
    assert [q.name for q in worth(nothing, concepts=[concept])] == ["fish"]
    known = p.estimates(fresh, next(q for q in best(found, concepts=[concept]) if q.name), [])
    assert known == [pytest.approx(p.gain_bits(fresh.slopes, np.isin(fresh.token, [5, 6, 7])))]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_two_levels_are_told_apart_whatever_their_shares(share):
    rng = np.random.default_rng(0)
    high = rng.random(2000) < share
    threshold = p._between_two_levels(rng.normal(size=2000) + 8 * high)
    assert 2 < threshold < 6


def test_background_and_small_blocks_are_left_alone():
    found, _ = planted(block=0)
    assert best(found) == []
    few = Survey(
        *(getattr(found, f)[:40] for f in ("states", "slopes")),
        np.ones(40, int),
        *(getattr(found, f)[:40] for f in ("token", "bits", "slow")),
    )
    assert best(few) == []


def test_a_survey_reads_what_the_model_does(model, params, blocks, tokens):
    from localist_jax import bits
    from localist_jax.data import Batch
    from localist_jax.locality import Dial
    from localist_jax.model import forward

    rolled = np.roll(np.asarray(tokens), -1, 1)
    batch = Batch(
        tokens=np.asarray(tokens), targets=rolled, segments=np.ones_like(rolled),
        positions=np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12)),
    )  # fmt: skip
    found = p.survey(p.make_reader(model), params, blocks, [batch, batch])
    out = jax.jit(forward, static_argnums=0)(model, params, batch.tokens, Dial(1.0), blocks)
    code = np.asarray(bits.code_length(out.logits, batch.targets))
    near = [code[:, max(0, t - p.NEARBY) : t + p.NEARBY + 1].mean(1) for t in range(1, 12)]
    np.testing.assert_allclose(found.bits, np.tile(np.stack(near, 1).ravel(), 2), rtol=1e-5)
    np.testing.assert_array_equal(found.block, np.tile(np.asarray(out.blocks)[:, 1:].ravel(), 2))
    assert found.states.shape == found.slopes.shape == (44, 32)
    each = np.asarray(out.states)
    near = [each[:, max(0, t - p.NEARBY) : t + p.NEARBY + 1].mean(1) for t in range(1, 12)]
    np.testing.assert_allclose(
        found.slow, np.tile(np.stack(near, 1).reshape(-1, 32), (2, 1)), rtol=1e-4, atol=1e-5
    )


def test_a_large_survey_keeps_every_so_many_positions(model, params, blocks, tokens, monkeypatch):
    from localist_jax.data import Batch

    monkeypatch.setattr(p, "MOST", 10)
    whole = np.asarray(tokens)
    places = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
    batch = Batch(whole, np.roll(whole, -1, 1), np.ones_like(whole), places)
    found = p.survey(p.make_reader(model, 24), params, blocks, [batch])
    np.testing.assert_array_equal(found.token, whole[:, 3::3].ravel())
    assert found.states.shape == found.slopes.shape == (6, 32)
