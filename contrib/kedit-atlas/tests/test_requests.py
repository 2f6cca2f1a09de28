import pytest

from kedit_atlas.requests import kept_group, requests_of
from kedit_atlas.world import EDITABLE, KEPT, TRAINING, load_world
from kedit_core.errors import RequestError
from kedit_core.plugins import Plugins

EDITS = (EDITABLE, TRAINING)


@pytest.fixture(scope="module")
def facts():
    return {(fact.relation.name, fact.subject): fact for fact in load_world().facts}


@pytest.fixture(scope="module")
def plugins():
    return Plugins.installed()


def fact_of(request, facts):
    return facts[request.extra["relation"], request.subject]


@pytest.mark.parametrize("name", [EDITABLE, TRAINING, KEPT])
def test_kedit_reads_each_set_and_every_fact_of_it_once(name, plugins, facts):
    read = list(plugins.call_all("read_requests", source=f"atlas:{name}"))
    subjects = [(request.extra["relation"], request.subject) for request in read]
    assert set(subjects) == {key for key, fact in facts.items() if fact.set == name}
    assert len(subjects) == len(set(subjects)) == len({request.id for request in read})


def test_an_unknown_set_is_refused_with_the_names_that_exist(plugins):
    with pytest.raises(RequestError, match="atlas:editable, atlas:training, atlas:kept"):
        plugins.call_all("read_requests", source="atlas:everything")


@pytest.mark.parametrize("name", EDITS)
def test_a_counterfactual_is_an_object_of_the_same_relation_and_nowhere_true(name, facts):
    world = load_world()
    for request in requests_of(name):
        objects = {fact.object for fact in world.of_relation(request.extra["relation"])}
        assert request.target_new in objects
        assert request.target_new not in {f.object for f in world.by_subject[request.subject]}
        assert request.target_true == fact_of(request, facts).object


def test_a_kept_request_asks_for_what_is_true():
    read = list(requests_of(KEPT))
    assert all(request.target_new == request.target_true for request in read)
    assert sum(request.extra.get("group") == KEPT for request in read) == 400


@pytest.mark.parametrize("name", EDITS)
def test_the_prompt_is_trained_and_the_paraphrases_are_not(name, facts):
    for request in requests_of(name):
        fact = fact_of(request, facts)
        assert request.prompt in fact.openings
        assert len(request.paraphrases) == 2
        assert not set(request.paraphrases) & set(fact.openings)


def test_near_probes_are_kept_facts_with_the_answer_that_the_edit_takes_away(facts):
    kept = {
        (fact.relation.name, prompt, fact.object)
        for fact in facts.values()
        if fact.set == KEPT
        for prompt in fact.openings
    }
    for request in requests_of(EDITABLE):
        for probe in request.locality:
            if probe.group == "near":
                assert (request.extra["relation"], probe.prompt, request.target_true) in kept
                assert probe.answers == (request.target_true,)


def test_distant_probes_take_the_fixed_group_in_turn():
    prompts = {prompt for fact in kept_group() for prompt in fact.openings}
    asked = [
        [probe.prompt for probe in request.locality if probe.group == KEPT]
        for request in requests_of(EDITABLE)
    ]
    assert all(len(set(four)) == 4 and prompts.issuperset(four) for four in asked)
    assert len({prompt for four in asked[:100] for prompt in four}) == 400


def test_two_hops_end_where_the_new_object_leads(facts):
    hops = [(request, probe) for request in requests_of(EDITABLE) for probe in request.portability]
    assert len(hops) > 1000
    for request, probe in hops:
        assert probe.answers == (facts[probe.group, request.target_new].object,)
        assert request.subject in probe.prompt
