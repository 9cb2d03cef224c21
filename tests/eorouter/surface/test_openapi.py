"""The OpenAPI document: valid, deterministic, and saying what the registry says."""

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from eorouter.app import document, registry
from eorouter.errors import ApiError
from eorouter.operation import PUBLIC, Blob
from eorouter.surface import openapi


@pytest.fixture(params=["toys", "real"])
def described(request, toys):
    """A registry and its document: the toys have every shape, the real one is what is served."""
    every = toys if request.param == "toys" else registry()
    return every, openapi.document(every)


def test_document_is_valid(described):
    _, made = described
    assert [error.message for error in OpenAPIV31SpecValidator(made).iter_errors()] == []


def test_document_is_the_same_each_time(described):
    every, made = described
    assert msgspec.json.encode(openapi.document(every)) == msgspec.json.encode(made)


def test_every_operation_has_its_routes_scope_and_tier(described):
    every, made = described
    for op in every:
        ways = [(route.path, route.method.lower()) for route in op.routes]
        if op.receives_bytes:
            assert f"/v1/op/{op.id}" not in made["paths"]
        else:
            ways.append((f"/v1/op/{op.id}", "post"))
        for path, method in ways:
            entry = made["paths"][path][method]
            assert (entry["x-scope"], entry["x-side-effect"]) == (op.scope, op.tier.value)
            assert entry["security"] == [] if op.scope == PUBLIC else entry["security"][0].keys() == {"bearer"}


def test_every_declared_error_stands_in_its_response(described):
    every, made = described

    def codes(response: dict) -> list[str]:
        if "$ref" in response:
            response = made["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
        return response["x-error-codes"]

    for op in every:
        if op.receives_bytes:
            continue
        responses = made["paths"][f"/v1/op/{op.id}"]["post"]["responses"]
        for error in openapi.errors_of(op):
            assert issubclass(error, ApiError)
            listed = codes(responses[str(error.status)])
            assert error.code in listed or set(openapi.compute_codes()) <= set(listed)


def test_every_example_fits_its_schema(described):
    every, made = described
    for op in every:
        if op.receives_bytes:
            continue
        content = made["paths"][f"/v1/op/{op.id}"]["post"]["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": made["components"]}
        assert len(content["examples"]) == len(op.examples)
        for example in content["examples"].values():
            jsonschema.validate(example["value"], schema, cls=jsonschema.Draft202012Validator)


def test_answer_of_an_operation_fits_its_schema(toys):
    made = openapi.document(toys)
    answer = {"toys": [{"toy_id": "t", "name": "n", "shape": {"shape": "disc", "radius_m": 1}, "colours": []}]}
    schema = {"$ref": "#/components/schemas/ToyPage", "components": made["components"]}
    jsonschema.validate(answer | {"next_cursor": None}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer, schema)


def test_tagged_union_has_a_discriminator(toys):
    made = openapi.document(toys)
    shape = made["components"]["schemas"]["ToysCreateInput"]["properties"]["shape"]["anyOf"][0]
    assert shape["discriminator"]["propertyName"] == "shape"
    assert set(shape["discriminator"]["mapping"]) == {"square", "disc"}


def test_query_and_path_parameters_come_from_the_fields(toys):
    paths = openapi.document(toys)["paths"]
    listed = {each["name"]: each for each in paths["/v1/toys"]["get"]["parameters"]}
    assert set(listed) == {"colours", "kind", "mass_kg_max", "is_new", "limit", "cursor"}
    assert listed["colours"]["explode"] is True
    assert listed["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 2}
    assert listed["cursor"]["schema"] == {"type": "string", "maxLength": 1024}
    assert not any(each["required"] for each in listed.values())
    update = paths["/v1/toys/{toy_id}"]["patch"]
    assert [(each["name"], each["in"], each["required"]) for each in update["parameters"]] == [("toy_id", "path", True)]
    body = update["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"number", "name"}
    assert paths["/v1/toys/{toy_id}/purchase"]["post"]["parameters"][0]["name"] == "Idempotency-Key"
    assert "requestBody" not in paths["/v1/toys/{toy_id}/purchase"]["post"]


def test_blob_is_described_with_its_ranges(toys):
    assert openapi.Blob is Blob
    answers = openapi.document(toys)["paths"]["/v1/toys/{toy_id}/picture"]["get"]["responses"]
    assert {"200", "206", "304", "416"} <= set(answers)


def test_names_of_operations_are_unique_in_the_document():
    names = [entry["operationId"] for ways in document()["paths"].values() for entry in ways.values()]
    assert len(names) == len(set(names))
