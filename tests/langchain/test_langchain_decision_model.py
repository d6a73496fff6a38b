"""The router as LangChain's own decision model, where langchain-core has them."""

import importlib.util

import pytest
from langchain_stubs import ListRetriever, ReadingChatModel, WordRouter

from ragft_plugin.errors import RagftError
from ragft_plugin.langchain import decision_model, pipeline_from

HAS_DECISIONS = importlib.util.find_spec("langchain_core.decisions") is not None


def a_pipeline():
    models = {"base": ReadingChatModel(name="base"), "adapter:skills": ReadingChatModel(name="skills")}
    return pipeline_from(router=WordRouter(("skill", "adapter:skills")), models=models, retriever=ListRetriever())


@pytest.mark.skipif(HAS_DECISIONS, reason="langchain-core 1.8 and later have decision models")
def test_an_older_core_is_named_with_the_cure():
    with pytest.raises(RagftError, match=r"langchain-core>=1\.8"):
        decision_model(a_pipeline())


@pytest.mark.skipif(not HAS_DECISIONS, reason="needs langchain-core 1.8")
async def test_a_choice_among_arms_is_the_routers_decision():
    from langchain_core.decisions import Choice, Noul

    model = decision_model(a_pipeline())
    choice = Choice(instructions="", criteria={"base": "general", "adapter:skills": "skills"})
    request = {"state": "which skill", "questions": {"arm": choice}}
    for response in (model.invoke(request), await model.ainvoke(request)):
        answer = response.choices["arm"]
        assert (answer.choice, answer.confidence) == ("adapter:skills", 0.75)
        assert answer.probabilities == {"base": 0.0, "adapter:skills": 1.0}
        assert response.request_id
    with pytest.raises(ValueError, match="none of the labels"):
        model.invoke({"state": "who", "questions": {"arm": Choice(instructions="", criteria={"rag": ""})}})
    with pytest.raises(ValueError, match="a Choice among arms, not a Noul"):
        model.invoke({"state": "who", "questions": {"arm": Noul(instructions="")}})


@pytest.mark.skipif(not HAS_DECISIONS, reason="needs langchain-core 1.8")
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_it_drives_langchains_own_middleware_unchanged():
    middleware = pytest.importorskip("langchain.agents.middleware")
    agents = pytest.importorskip("langchain.agents")
    pipeline = a_pipeline()
    choices = {
        name: middleware.ModelChoice(model=pipeline.arms[name].generator.model, criteria=name)
        for name in ("base", "adapter:skills")
    }
    router = middleware.ModelRouterMiddleware(choices=choices, instructions="", classifier=decision_model(pipeline))
    agent = agents.create_agent(ReadingChatModel(name="agent"), [], middleware=[router])
    assert agent.invoke({"messages": [("human", "which skill")]})["messages"][-1].text == "skills guesses"
    assert agent.invoke({"messages": [("human", "who")]})["messages"][-1].text == "base guesses"
