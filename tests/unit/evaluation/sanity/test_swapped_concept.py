import torch

from vqcortex.evaluation.sanity.protocol import Limits
from vqcortex.evaluation.sanity.swapped_concept import measure_swapped_concept


def test_another_concept_has_another_map(subject):
    assert measure_swapped_concept(subject, Limits()).finding.verdict == "pass"


def test_an_explainer_that_ignores_the_concept_fails(explained_by):
    found = measure_swapped_concept(explained_by("edges"), Limits()).finding
    assert (found.verdict, found.value) == ("fail", 1.0)


def test_the_other_concept_is_never_the_same_and_belongs_to_the_image(subject, changed):
    asked = []

    def listen(module, embedded, concept, image_ids):
        asked.append(dict(zip(image_ids, concept.tolist(), strict=True)))
        return torch.rand(len(embedded), 4, 4, generator=torch.Generator().manual_seed(0))

    measure_swapped_concept(changed(subject, score=listen), Limits())
    truth = dict(zip(subject.image_ids, subject.concept.tolist(), strict=True))
    assert all(asked[0][name] != truth[name] and 0 <= asked[0][name] < 8 for name in truth)
    rows = torch.arange(23, 3, -1)
    turned = changed(
        subject, score=listen, tokens=subject.tokens[rows], concept=subject.concept[rows],
        image_ids=[subject.image_ids[row] for row in rows.tolist()], original=subject.original[rows],
    )  # fmt: skip
    measure_swapped_concept(turned, Limits())
    assert all(asked[1][name] == asked[0][name] for name in asked[1])


def test_one_concept_has_no_other(subject, changed):
    found = measure_swapped_concept(changed(subject, concepts=1), Limits()).finding
    assert (found.verdict, found.reason) == ("skipped", "1 concept has no other to explain; at least 2 are needed")
